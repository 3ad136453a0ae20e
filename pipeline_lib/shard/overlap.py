"""No picture is in two parts that must not share one.

First `refine`, then `val`, then every other part and evaluation set lose the pictures (by content hash) that the base
or an earlier training part was trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import TRAINING_PARTS, read_index
from pipeline_lib.shard import jobs as shard_jobs
from pipeline_lib.shard.set_writer import NAMED, SetWriter
from pipeline_lib.shard.workers import Workers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Seen:
    """Content hashes of pictures as sorted 16-byte rows, by the part that has them."""

    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def add(self, name: str, digests: np.ndarray) -> None:
        """Remember the pictures of part `name`."""
        self.pictures.append((name, np.unique(digests)))

    def find(self, digests: np.ndarray) -> dict[int, str]:
        """{row: part that has the picture} of those that were seen."""
        found: dict[int, str] = {}
        for name, pictures in self.pictures:
            for row in np.flatnonzero(np.isin(digests, pictures)):
                found.setdefault(int(row), name)
        return found


def rows_of(digests: Iterable[bytes | bytearray]) -> np.ndarray:
    """16-byte digests as an array [n] that numpy can sort and compare."""
    return np.frombuffer(b"".join(digests), dtype="S16")


def pictures_of(writer: SetWriter, part: str) -> np.ndarray:
    """Content hashes of the pictures of a part."""
    return rows_of(record.pictures for record in writer.records[part])


def read_trained_on(path: Path) -> list[tuple[str, str]]:
    """(key, SHA-256) of the images that the base was trained on, as far as it knows.

    Raises:
        UserError: The file is missing or is not what the base stage writes.
    """
    try:
        return [(row["key"], row["sha256"]) for row in artifacts.read_jsonl(path)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by the base stage ({error}); run `dvc repro -f base`") from None


def exclude_overlap(workers: Workers, sets: Sequence[SetWriter], trained_on: Sequence[tuple[str, str]]) -> None:
    """Take pictures out of every part that an earlier training part has.

    Raises:
        UserError: A part holds more of them than `shard.max_overlap_share` allows, or a sample of `base` itself.
    """
    seen = Seen()
    seen.add("base", rows_of(shard_jobs.picture_digest(sha256) for _, sha256 in trained_on))
    for writer, part in in_order(sets):
        found = _overlap(writer, part, seen, set(trained_on) if writer is sets[0] else set())
        if found:
            writer.exclude(workers, found)
        if writer is sets[0] and part in TRAINING_PARTS:
            seen.add(part, pictures_of(writer, part))


def in_order(sets: Sequence[SetWriter]) -> list[tuple[SetWriter, str]]:
    """Training parts first, then the other parts of the data, then the evaluation sets."""
    order = [part for part in TRAINING_PARTS if part in sets[0].parts]
    order += [part for part in sets[0].parts if part not in TRAINING_PARTS]
    return [(sets[0], part) for part in order] + [(writer, part) for writer in sets[1:] for part in writer.parts]


def _overlap(
    writer: SetWriter, part: str, seen: Seen, trained_on: set[tuple[str, str]]
) -> dict[str, dict[tuple[str, str], str]]:
    """{job: {(part, key): reason}} of the pictures of `part` that were seen."""
    rows = seen.find(pictures_of(writer, part))
    if not rows:
        return {}
    number, found, keys = 0, dict[str, dict[tuple[str, str], str]](), list[str]()
    for record in writer.records[part]:
        for entry in read_index(writer.rules.output / part / record.index) if record.num_samples else ():
            if (entry.key, entry.sha256) in trained_on:
                raise UserError(
                    f"{writer.source.name}: `{entry.key}` of part `{part}` is among the images that the base was "
                    f"trained on ({artifacts.TRAINED_ON}); run `dvc repro base` with these parts"
                )
            if number in rows:
                found.setdefault(record.job, {})[part, entry.key] = f"the same picture is in {rows[number]}"
                keys.append(entry.key)
            number += 1
    share = writer.rules.settings.max_overlap_share
    if len(keys) > share * number:
        raise UserError(
            f"{writer.source.name}: {len(keys)} of the {number} pictures of part `{part}` are also in "
            f"{', '.join(sorted(set(rows.values())))}, more than shard.max_overlap_share ({share:g}) allows: "
            f"{', '.join(keys[:NAMED])}; remove the doubles or change the parts"
        )
    log.warning("%s: %d of %d pictures left out: they are also in a training part", part, len(keys), number)
    return found
