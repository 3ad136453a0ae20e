"""Writes data/shards: every part of the data and every evaluation set, by a pool of processes, one shard a job.

Everything is built in the work folder and published by rename when all of it is in order; a killed run, started again,
keeps its finished shards (see `shard_jobs`). Above `shard.max_bad_share` quarantined samples the stage fails.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.core import artifacts
from pipeline_lib.core.shards import STAGE, check_names
from pipeline_lib.shard import overlap
from pipeline_lib.shard.jobs import Record, Rules
from pipeline_lib.shard.set_writer import SetWriter
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.shard.workers import start_workers
from pipeline_lib.sources import formats as sources
from pipeline_lib.sources import known_answers
from pipeline_lib.sources.samples import Source, Splitter
from pipeline_lib.sources.settings import DataSettings

QUARANTINE, FILTERED = LISTS = ("quarantine.jsonl", "filtered.jsonl")  # {"part", "key", "reason"} a line


def run(
    data: DataSettings,
    settings: ShardSettings,
    *,
    trained_on: Path,
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
        target: Folder to replace when everything is in order.
        fingerprint: Stands for parameters, code and inputs other than images; names the work folder.
        num_workers: Processes; None: one per core.
        progress: Show a bar.

    Returns:
        The manifest of `target`: `parts` {name: digest}, `numbers` {name: {count: n}}, `digest`.

    Raises:
        UserError: See `SetWriter.write` and `sources`.
    """
    work = artifacts.work_directory(STAGE, fingerprint)
    known_base = overlap.read_trained_on(trained_on)
    with start_workers(num_workers) as workers:
        sets = [_set_writer(data, sources.open_source(data), data.parts, work, settings)]
        check_names(sets[0].parts, data.evaluation)
        sets += [
            _set_writer(data, sources.open_evaluation_set(data, name), {name: 1.0}, work, settings)
            for name in data.evaluation
        ]
        for writer in sets:
            writer.write(workers, progress)
        overlap.exclude_overlap(workers, sets, known_base)
    manifest = _finish(work / "output", sets)
    artifacts.publish(work / "output", target)
    shutil.rmtree(work)
    return manifest


def _set_writer(
    data: DataSettings, source: Source, parts: Mapping[str, float | str], work: Path, settings: ShardSettings
) -> SetWriter:
    rules = Rules(work=work, settings=settings, captioned=source.captioned, tasks=source.tasks)
    splitter = Splitter(parts, source.samples.folder, source.name)
    answers = {part: known_answers.read(data, part) for part in splitter.parts}
    return SetWriter(source=source, splitter=splitter, rules=rules, known_answers=answers)


def _finish(output: Path, sets: Sequence[SetWriter]) -> dict[str, Any]:
    """Write the manifests and the lists of what was left out; return the manifest of the whole."""
    known: dict[str, str] = {}
    parts, numbers = {}, {}
    for writer, part in overlap.in_order(sets):
        facts = _part_facts(writer, part)
        folder = output / part
        hashes = {shard["index"]: shard["index_sha256"] for shard in facts["shards"]}
        if not facts["in_place"]:
            hashes |= {shard["file"]: shard["sha256"] for shard in facts["shards"]}
        _remove_others(folder, hashes)
        parts[part] = artifacts.write_manifest(folder, STAGE, known=hashes, **facts)
        known |= {f"{part}/{name}": sha256 for name, sha256 in hashes.items()}
        numbers[part] = _numbers(facts)
    _remove_others(output, {f"{part}/{name}" for part in parts for name in os.listdir(output / part)})
    _write_list(output / QUARANTINE, sets, lambda record: record.quarantined, with_rejected=False)
    _write_list(output / FILTERED, sets, lambda record: record.excluded, with_rejected=True)
    counts = {
        writer.source.name: {
            "filtered": {"in_no_part": writer.in_no_part, "by_the_set": len(writer.source.rejected)},
            "ignored_members": dict(sorted(writer.ignored.items())),
        }
        for writer in sets
    }
    artifacts.write_manifest(output, STAGE, known=known, parts=parts, numbers=numbers, counts=counts)
    return artifacts.read_manifest(output, stage=STAGE)


def _part_facts(writer: SetWriter, part: str) -> dict[str, Any]:
    records = writer.records[part]
    used = [record for record in records if record.num_samples]
    quarantined = sum(len(record.quarantined) for record in records)
    reasons = Counter(reason for record in records for _, reason in record.excluded)
    num_samples = sum(record.num_samples for record in used)
    num_captions = sum(record.num_captions for record in used)
    pictures, captions = overlap.pictures_of(writer, part), overlap.rows_of(record.captions for record in records)
    answers = writer.known_answers.get(part)
    return {
        "name": part,
        "in_place": bool(writer.source.tars),
        "shards": [
            {
                "file": record.file,
                "index": record.index,
                "sha256": record.sha256,
                "index_sha256": record.index_sha256,
                "bytes": record.num_bytes,
                "num_samples": record.num_samples,
                "num_captions": record.num_captions,
            }
            for record in used
        ],
        "counts": {
            "read": sum(record.read for record in records),
            "used": num_samples,
            "filtered": sum(reasons.values()),
            "quarantined": quarantined,
        },
        "filtered": dict(sorted(reasons.items())),
        "num_samples": num_samples,
        "num_captions": num_captions,
        "max_image_pixels": writer.rules.settings.max_image_pixels,
        "dropped_captions": sum(record.dropped_captions for record in records),
        "max_caption_chars": max((record.max_caption_chars for record in used), default=0),
        "duplicates": {
            "images": num_samples - len(np.unique(pictures)),
            "captions": num_captions - len(np.unique(captions)),
        },
        "tasks": {name: dataclasses.asdict(task) for name, task in writer.source.tasks.items()},
        "source": dict(writer.source.facts),
        **({"known_answers": answers} if answers else {}),
    }


def _numbers(facts: Mapping[str, Any]) -> dict[str, int]:
    """The counts of a part that are worth a line in the tracking."""
    return {
        "num_samples": facts["num_samples"],
        "num_captions": facts["num_captions"],
        "num_shards": len(facts["shards"]),
        "quarantined": facts["counts"]["quarantined"],
        "filtered": facts["counts"]["filtered"],
        "dropped_captions": facts["dropped_captions"],
        "duplicate_images": facts["duplicates"]["images"],
        "duplicate_captions": facts["duplicates"]["captions"],
    }


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier, killed run left in `folder` beyond `names`."""
    keep = {folder / name for name in names}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in keep]:
        path.unlink()


def _write_list(
    path: Path, sets: Sequence[SetWriter], pairs: Callable[[Record], list[tuple[str, str]]], *, with_rejected: bool
) -> None:
    def rows() -> Iterator[dict[str, str | None]]:
        for writer in sets:
            for key, reason in writer.source.rejected if with_rejected else ():
                yield {"part": None, "key": key, "reason": reason}
            for part in writer.parts:
                for key, reason in (pair for record in writer.records[part] for pair in pairs(record)):
                    yield {"part": part, "key": key, "reason": reason}

    artifacts.write_jsonl(path, rows())
