"""What data/shards says of itself: a manifest for each part and for the whole, and lists of what was left out."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.core import artifacts
from pipeline_lib.core.choices import TABLE, write_choices
from pipeline_lib.core.shards import STAGE, prompts_digest
from pipeline_lib.shard import leakage
from pipeline_lib.shard.choices import count_choices, settle_choices
from pipeline_lib.shard.records import Record
from pipeline_lib.shard.set_writer import SetWriter

QUARANTINE, FILTERED = LISTS = ("quarantine.jsonl", "filtered.jsonl")  # {"part", "key", "reason"} a line
SIMILAR = "similar.jsonl"  # {"part", "key", "similar_to"} a line: kept, though a training part has one like it


def write_manifests(output: Path, sets: Sequence[SetWriter]) -> dict[str, Any]:
    """Write the manifests and the lists of what was left out below `output`; return the manifest of the whole.

    Raises:
        UserError: The choices of a set cannot be scored.
    """
    known: dict[str, str] = {}
    parts, numbers = {}, {}
    for writer, part in leakage.parts_in_order(sets):
        choices = settle_choices(writer, part) if writer.source.choices else []
        facts = _part_facts(writer, part) | ({"choices": count_choices(choices)} if choices else {})
        folder = output / part
        hashes = {shard["index"]: shard["index_sha256"] for shard in facts["shards"]}
        if not facts["in_place"]:
            hashes |= {shard["file"]: shard["sha256"] for shard in facts["shards"]}
        if choices:
            write_choices(folder, choices)
            hashes[TABLE] = artifacts.sha256_file(folder / TABLE)
        _remove_others(folder, hashes)
        parts[part] = artifacts.write_manifest(folder, STAGE, known=hashes, **facts)
        known |= {f"{part}/{name}": sha256 for name, sha256 in hashes.items()}
        numbers[part] = _numbers(facts)
    _remove_others(output, {f"{part}/{name}" for part in parts for name in os.listdir(output / part)})
    of_no_part = [(writer.source.rows.named() if writer.source.rows else (), writer.source.rejected) for writer in sets]
    _write_list(output / QUARANTINE, sets, lambda record: record.quarantined, [bad for bad, _ in of_no_part])
    _write_list(output / FILTERED, sets, lambda record: record.excluded, [rejected for _, rejected in of_no_part])
    similar = [(part, *pair) for writer in sets for part in writer.parts for pair in writer.similar.get(part, [])]
    if similar:
        names = "part", "key", "similar_to"
        artifacts.write_jsonl(output / SIMILAR, (dict(zip(names, row, strict=True)) for row in similar))
    counts = {writer.source.name: _set_counts(writer) for writer in sets}
    artifacts.write_manifest(output, STAGE, known=known, parts=parts, numbers=numbers, counts=counts)
    return artifacts.read_manifest(output, stage=STAGE)


def _set_counts(writer: SetWriter) -> dict[str, Any]:
    """Return what was left out before it came to a part; of rows, and of images without one, only where some were."""
    rows = writer.source.rows
    read, bad = (rows.read, len(rows.bad)) if rows else (0, 0)
    return {
        "filtered": {"in_no_part": writer.in_no_part, "by_the_set": len(writer.source.rejected)},
        "ignored_members": dict(sorted(writer.ignored.items())),
        **({"rows": {"read": read, "used": read - bad, "left_out": bad}} if bad else {}),
        **({"unnamed_images": writer.unnamed._asdict()} if writer.unnamed.num_images else {}),
    }


def _part_facts(writer: SetWriter, part: str) -> dict[str, Any]:
    records = writer.records[part]
    used = [record for record in records if record.num_samples]
    quarantined = sum(len(record.quarantined) for record in records)
    reasons = Counter(reason for record in records for _, reason in record.excluded)
    num_samples = sum(record.num_samples for record in used)
    num_captions = sum(record.num_captions for record in used)
    images, captions = leakage.image_digests(writer, part), leakage.as_rows(record.captions for record in records)
    answers = writer.known_answers.get(part)
    return {
        "name": part,
        "in_place": bool(writer.source.tars),
        "shards": [_shard_facts(record) for record in used],
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
            "images": num_samples - len(np.unique(images)),
            "captions": num_captions - len(np.unique(captions)),
        },
        "tasks": {
            name: dataclasses.asdict(task) | {"prompts": prompts_digest(task.classnames, task.templates)}
            for name, task in writer.source.tasks.items()
        },
        "source": dict(writer.source.facts),
        **({"known_answers": answers} if answers else {}),
        **({"similar_to_trained": len(writer.similar[part])} if writer.similar.get(part) else {}),
    }


def _shard_facts(record: Record) -> dict[str, Any]:
    return {
        "file": record.file,
        "index": record.index,
        "sha256": record.sha256,
        "index_sha256": record.index_sha256,
        "bytes": record.num_bytes,
        "num_samples": record.num_samples,
        "num_captions": record.num_captions,
    }


def _numbers(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts of a part that are worth a line in the tracking."""
    return {
        "num_samples": facts["num_samples"],
        "num_captions": facts["num_captions"],
        "num_shards": len(facts["shards"]),
        "quarantined": facts["counts"]["quarantined"],
        "filtered": facts["counts"]["filtered"],
        "dropped_captions": facts["dropped_captions"],
        "duplicate_images": facts["duplicates"]["images"],
        "duplicate_captions": facts["duplicates"]["captions"],
        **{f"choices_{name}": count for name, count in facts.get("choices", {}).items()},
    }


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier, killed run left in `folder` beyond `names`."""
    keep = {folder / name for name in names}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in keep]:
        path.unlink()


def _write_list(
    path: Path,
    sets: Sequence[SetWriter],
    pairs: Callable[[Record], list[tuple[str, str]]],
    of_no_part: Sequence[Iterable[tuple[str, str]]],
) -> None:
    def rows() -> Iterator[dict[str, str | None]]:
        for writer, left_out in zip(sets, of_no_part, strict=True):
            for key, reason in left_out:
                yield {"part": None, "key": key, "reason": reason}
            for part in writer.parts:
                for key, reason in (pair for record in writer.records[part] for pair in pairs(record)):
                    yield {"part": part, "key": key, "reason": reason}

    artifacts.write_jsonl(path, rows())
