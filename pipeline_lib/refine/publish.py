"""The refined model's folder: saved, loaded back and compared, with its history and manifest, then moved into place."""

from __future__ import annotations

import csv
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib import model
from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.refine.checkpoint import Checkpoints
from pipeline_lib.refine.checks import check_saved
from pipeline_lib.refine.state import Setup, State

HISTORY_CSV = "history.csv"  # the history for `dvc plots`, which reads no JSON Lines


def publish_refined(
    state: State, setup: Setup, checkpoints: Checkpoints, paths: Paths, facts: Mapping[str, Any]
) -> str:
    """Save the student, load it back, compare features, write the manifest, move the folder to `paths.refined`.

    Args:
        state: After the last step; its optimiser has forgotten its means then.
        setup: Of the run.
        checkpoints: Whose folder goes once the result is in its place.
        paths: Where base and result are.
        facts: What the manifest says beside what it says of the model.

    Returns:
        The manifest's digest.

    Raises:
        UserError: The saved model differs, or MLflow is required and failed: then the last step has a checkpoint.
    """
    try:
        checkpoints.run.settle()
    except UserError:
        checkpoints.save(state)
        raise
    state.optimizer.state.clear()  # makes room for the saved model, which is loaded back
    runtime.give_freed_memory_back()
    student, target = state.student, checkpoints.work / "refined"
    model.save(student, target)
    saved = model.load(target, device=student.device)
    check_saved(student, saved, setup.part)
    shutil.copyfile(checkpoints.history, target / artifacts.HISTORY)
    write_csv(checkpoints.history, target / HISTORY_CSV)
    _write_trained_on(setup.part, paths.base / artifacts.TRAINED_ON, target / artifacts.TRAINED_ON)
    origin = {k: v for k, v in student.facts.items() if k not in saved.facts}
    described = {**origin, **saved.facts, "refined_from": student.facts["weights_digest"]}
    digest = artifacts.write_manifest(target, "refine", model=described, **facts)
    artifacts.publish(target, paths.refined)
    shutil.rmtree(checkpoints.work)
    return digest


def write_csv(history: Path, target: Path) -> None:
    """Write the history as CSV: a column for every key of any row, since a term may be left out of some steps."""
    rows = list(artifacts.read_jsonl(history))
    columns = dict.fromkeys(key for row in rows for key in row)
    with artifacts.atomic_open(target, "w") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_trained_on(part: CachedPart, before: Path, target: Path) -> None:
    """List the images that shaped these weights: those of the base, where known, and those of this run."""
    known = list(artifacts.read_jsonl(before)) if before.is_file() else []
    images = {(row["key"], row["sha256"]) for row in known}  # which a second refinement may have seen already
    more = (
        {"key": e.key, "sha256": e.sha256} for _, e in part.entries(part.valid_rows) if (e.key, e.sha256) not in images
    )
    artifacts.write_jsonl(target, itertools.chain(known, more))
