"""From base and teacher cache to the refined model: checks before the first step, the loop, checks before publishing.

Step 0 of the student must give the cached features, since both come from the same weights; the saved folder, loaded
back, must give those of the model in memory.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_lib import model, tracking
from pipeline_lib.cache_teacher import reader as teacher_cache
from pipeline_lib.cache_teacher.reader import CachedPart, embed_images, embed_texts, fingerprint
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import Clip
from pipeline_lib.model.features import row_difference
from pipeline_lib.refine import recipes
from pipeline_lib.refine.loop import Refiner
from pipeline_lib.refine.settings import RefineSettings

log = logging.getLogger(__name__)
HISTORY_CSV = "history.csv"  # the history for `dvc plots`, which reads no JSON Lines
DECIDE_TEACHER = ("mode", "teacher", "precision", "dtype", "chunk_size", "text_cut")  # keys of `cache_teacher`


def check_step_zero(
    student: Clip, part: CachedPart, chunk_size: int, tolerance: float, precision: str = "fp32"
) -> float:
    """The student's features before the first step against the cache: they come from the same weights.

    `precision` is the cache's, so that both sides compute alike.

    Returns:
        Largest relative difference of a feature row.

    Raises:
        UserError: It is larger than `tolerance`: wrong cache, captions, preprocessing or order.
    """
    rows = part.valid_rows[np.linspace(0, len(part.valid_rows) - 1, min(chunk_size, len(part.valid_rows))).astype(int)]
    captions = [int(part.num_captions[row]) - 1 for row in rows]
    stored = part.read_features(rows, captions)
    if stored is None:
        return 0.0
    inputs = part.read_inputs(rows, captions)
    with runtime.arithmetic(precision, student.device):
        fresh = (embed_images(student, inputs.images, chunk_size), embed_texts(student, inputs.token_ids, chunk_size))
    worst = max(row_difference(*pair) for pair in zip(fresh, stored, strict=True))
    if not worst <= tolerance:
        raise UserError(
            f"refine: before the first step the student's features differ from the cache by {worst:.2e} of their norm, "
            f"more than refine.step0_tolerance {tolerance:.0e}; run `dvc repro -f cache_teacher`"
        )
    return worst


def check_saved(student: Clip, saved: Clip, part: CachedPart, chunk_size: int) -> None:
    """The saved folder, loaded back, gives bitwise the features of the model in memory.

    Raises:
        UserError: It does not, or they are not finite.
    """
    rows = part.valid_rows[:chunk_size]
    inputs = part.read_inputs(rows, [0] * len(rows))
    student.module.eval()
    for embed, x in ((embed_images, inputs.images), (embed_texts, inputs.token_ids)):
        features = embed(student, x, chunk_size)
        if not features.isfinite().all():
            raise UserError("refine: the refined model's features are not finite; lower refine.learning_rate")
        if not torch.equal(features, embed(saved, x, chunk_size)):
            raise UserError(f"{saved.directory}: the saved model does not give the features of the refined one")


def run(
    paths: Paths,
    settings: RefineSettings,
    cache: CacheTeacherSettings,
    blocks: dict[str, Any],
    how: RuntimeSettings,
    world: World,
    run: tracking.Run,
    code_digest: str,
) -> dict[str, Any]:
    """Refine `paths.base` into `paths.refined`.

    Returns:
        `digest` of the refined model's manifest and `metrics` for the tracker (empty on processes but the first).

    Raises:
        UserError: The cache is not the one for this model, step 0 does not match it, the loss is not finite, or the
            saved model does not give the features of the one in memory.
    """
    recipe = recipes.build(settings.recipe, blocks)
    device = runtime.pick_device(how.device)
    student = model.load(paths.base, device=device)
    teacher = student if cache.teacher == "base" else model.load(Path(cache.teacher), device=device)
    recipes.try_out(recipe, f"recipes.{settings.recipe}", student.embed_dim, teacher.embed_dim)
    manifest = artifacts.read_manifest(paths.teacher, stage="cache_teacher")
    shards_digest = artifacts.read_manifest(paths.shards, stage="shard")["digest"]
    teacher_cache.check_fingerprint(manifest, fingerprint(student, teacher, cache, shards_digest), paths.teacher)
    parts = teacher_cache.open_parts(paths, student, pixels=cache.pixels != "never")
    part = parts["refine"]
    if world.is_main and not part.pixels and cache.pixels != "never":
        log.info(
            "%s has no pixels of these shards: each image is decoded again, which changes no result; "
            "`python -m stages.cache_teacher pixels` stores them",
            teacher_cache.pixels_directory(paths),
        )
    measured = _step_zero(student, part, cache, settings.step0_tolerance)
    identity = [manifest["digest"], student.facts["weights_digest"], dataclasses.asdict(settings)]
    work = artifacts.work_directory("refine", artifacts.digest([*identity, blocks[settings.recipe], code_digest]))
    refiner = Refiner(
        student=student,
        recipe=recipe,
        part=part,
        val=parts.get("val"),
        settings=settings,
        runtime=how,
        work=work,
        teacher=Teacher.of_cache(paths, cache, manifest, student, teacher),
        world=world,
        run=run,
    )
    measured |= refiner.val_loss("before")
    measured |= refiner.refine()
    measured |= refiner.val_loss("after")
    _warn_if_still(measured["weight_displacement"])
    if world.is_main:
        made_with = _made_with(settings, cache, blocks[settings.recipe])
        digest = _publish(refiner, paths, manifest["digest"], made_with)
    world.barrier()
    return {"digest": digest, "metrics": measured} if world.is_main else {}


def _warn_if_still(displacement: float) -> None:
    if displacement < 1e-3:
        log.warning(
            "the weights moved by %.1e of their norm only: learning rate x steps is too small to change the model; "
            "raise refine.learning_rate or refine.epochs for a set of this size",
            displacement,
        )


def _step_zero(student: Clip, part: CachedPart, cache: CacheTeacherSettings, tolerance: float) -> dict[str, float]:
    """`check_step_zero` where the base teaches itself; the tolerance is no finer than the cache."""
    if cache.teacher != "base" or cache.mode != "cached":
        return {}
    rough = {"float16": 2e-3}.get(cache.dtype, 0.0), {"tf32": 2e-3, "bf16": 2e-2}.get(cache.precision, 0.0)
    difference = check_step_zero(student, part, cache.chunk_size, max(tolerance, *rough), cache.precision)
    log.info("step 0: student and cache differ by %.1e of a feature's norm", difference)
    return {"step0_difference": difference}


def _write_csv(history: Path, target: Path) -> None:
    rows = list(artifacts.read_jsonl(history))
    with artifacts.atomic_open(target, "w") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_trained_on(refiner: Refiner, before: Path, target: Path) -> None:
    """The images that shaped these weights: those of the base, where known, and those of this run."""
    known = artifacts.read_jsonl(before) if before.is_file() else ()
    entries = (refiner.part.entry(int(row))[1] for row in refiner.part.valid_rows)
    artifacts.write_jsonl(target, itertools.chain(known, ({"key": e.key, "sha256": e.sha256} for e in entries)))


def _made_with(settings: RefineSettings, cache: CacheTeacherSettings, block: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide the weights, in the places that they have in params.yaml."""
    refine = {key: value for key, value in dataclasses.asdict(settings).items() if key != "step0_tolerance"}
    teacher = {key: value for key, value in dataclasses.asdict(cache).items() if key in DECIDE_TEACHER}
    return {"refine": refine, "cache_teacher": teacher, "recipes": {settings.recipe: block}}


def _publish(refiner: Refiner, paths: Paths, cache_digest: str, made_with: Mapping[str, Any]) -> str:
    """Save the student, load it back, compare features, write the manifest, move it to `paths.refined`.

    Args:
        refiner: After its last step.
        paths: Where base and result are.
        cache_digest: Of the teacher cache.
        made_with: The parameters that decide the weights.

    Raises:
        UserError: The saved model differs, or MLflow is required and failed: then the last step has a checkpoint.
    """
    try:
        refiner.run.settle()
    except UserError:
        refiner.save_checkpoint()
        raise
    student, target = refiner.student, refiner.work / "refined"
    model.save(student, target)
    saved = model.load(target, device=student.device)
    check_saved(student, saved, refiner.part, refiner.teacher.chunk_size)
    shutil.copyfile(refiner.work / artifacts.HISTORY, target / artifacts.HISTORY)
    _write_csv(refiner.work / artifacts.HISTORY, target / HISTORY_CSV)
    _write_trained_on(refiner, paths.base / artifacts.TRAINED_ON, target / artifacts.TRAINED_ON)
    origin = {k: v for k, v in student.facts.items() if k not in saved.facts}
    facts = {**origin, **saved.facts, "refined_from": student.facts["weights_digest"]}
    digest = artifacts.write_manifest(target, "refine", model=facts, parameters=made_with, cache=cache_digest)
    artifacts.publish(target, paths.refined)
    shutil.rmtree(refiner.work)
    return digest
