"""Write data/shards: every part of the data and every evaluation set, by a pool of processes, one shard a job.

Everything is built in the work folder and published by rename when all of it is in order; a killed run, started again,
keeps its finished shards (see `jobs`). Above `shard.max_bad_share` quarantined samples the stage fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, work_folders
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import STAGE, check_names
from pipeline_lib.shard import leakage, manifests
from pipeline_lib.shard.set_writer import SetWriter
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.shard.triage import Rules
from pipeline_lib.shard.workers import start_workers
from pipeline_lib.sources import formats, known_answers
from pipeline_lib.sources.parts import Splitter
from pipeline_lib.sources.samples import Source
from pipeline_lib.sources.settings import DataSettings


def run(
    data: DataSettings,
    settings: ShardSettings,
    *,
    trained_on: Path,
    trains_again: bool = False,
    target: Path,
    fingerprint: str,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write all parts (but `base`) and all evaluation sets to `target`.

    Args:
        data: The sets.
        settings: Sizes and limits.
        trained_on: The base's list of images it was trained on.
        trains_again: Whether part `refine` may hold those: the base was refined before.
        target: Folder to replace when everything is in order.
        fingerprint: Stands for parameters, code and inputs other than images; names the work folder.
        num_workers: Processes; None: one per core.
        progress: Show a bar.

    Returns:
        The manifest of `target`: `parts` {name: digest}, `numbers` {name: {count: n}}, `digest`.

    Raises:
        UserError: A shift has classes that its source has not, or see `formats.open_source`, `SetWriter.write` and
            `leakage.exclude_leaked_images`.
    """
    work = work_folders.work_directory(STAGE, fingerprint, target)
    known_base = leakage.read_trained_on(trained_on)
    with start_workers(num_workers) as workers:
        sets = [_set_writer(data, formats.open_source(data), data.parts, work, settings)]
        check_names(sets[0].parts, data.evaluation)
        sets += [
            _set_writer(data, formats.open_evaluation_set(data, name), {name: 1.0}, work, settings)
            for name in data.evaluation
        ]
        _check_shifts(data, sets)
        for writer in sets:
            writer.write(workers, progress)
        leakage.exclude_leaked_images(workers, sets, known_base, trains_again=trains_again)
    manifest = manifests.write_manifests(work / "output", sets)
    artifacts.publish(work / "output", target)
    shutil.rmtree(work)
    return manifest


def _set_writer(
    data: DataSettings, source: Source, parts: Mapping[str, float | str], work: Path, settings: ShardSettings
) -> SetWriter:
    rules = Rules(
        work=work, settings=settings, captioned=source.captioned, labelled=source.labelled, tasks=source.tasks
    )
    splitter = Splitter(parts, source.samples.folder, source.name, source.samples.splits)
    answers = {part: known_answers.read_known_answers(data, part) for part in splitter.parts}
    return SetWriter(source=source, splitter=splitter, rules=rules, known_answers=answers)


def _check_shifts(data: DataSettings, sets: Sequence[SetWriter]) -> None:
    """Refuse a shift (`shift_of`) whose classes are not among those of its source.

    Raises:
        UserError: See above.
    """
    tasks = {part: writer.source.tasks for writer in sets for part in writer.parts}
    for name, chosen in data.evaluation.items():
        if chosen.shift_of is None:
            continue
        key, source = f"data.evaluation.{name}.shift_of", tasks.get(chosen.shift_of, {})
        if not tasks[name].keys() & source.keys():
            raise UserError(
                f"{key}: `{name}` and `{chosen.shift_of}` have no classification task in common; write null"
            )
        for task in tasks[name].keys() & source.keys():
            known = set(source[task].classnames)
            unknown = [classname for classname in tasks[name][task].classnames if classname not in known]
            if unknown:
                raise UserError(
                    f"{key}: class `{unknown[0]}` of `{name}` is none of `{chosen.shift_of}` ({len(unknown)} of "
                    f"{len(tasks[name][task].classnames)} are not); name the classes alike, or write null"
                )
