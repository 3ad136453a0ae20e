"""Train/test leakage: no image that was trained on stays in a part that is evaluated.

First `refine`, then `val`, then every other part and evaluation set lose the images (by content hash) that the base
was trained on or that an earlier training part holds. Leaked images are left out, counted and named; above
`shard.max_overlap_share` the stage fails.
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
from pipeline_lib.shard.records import image_digest
from pipeline_lib.shard.set_writer import NAMED, SetWriter
from pipeline_lib.shard.workers import Workers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Seen:
    """Digests of images as sorted 16-byte rows, by the part that has them."""

    images: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def add(self, name: str, digests: np.ndarray) -> None:
        """Remember the images of part `name`."""
        self.images.append((name, np.unique(digests)))

    def find(self, digests: np.ndarray) -> dict[int, str]:
        """Return {row: part that has the image} of those that were seen."""
        found: dict[int, str] = {}
        for name, images in self.images:
            for row in np.flatnonzero(np.isin(digests, images)):
                found.setdefault(int(row), name)
        return found


def as_rows(digests: Iterable[bytes | bytearray]) -> np.ndarray:
    """Return 16-byte digests as an array [n] that numpy can sort and compare."""
    return np.frombuffer(b"".join(digests), dtype="S16")


def image_digests(writer: SetWriter, part: str) -> np.ndarray:
    """Return the digests of the images of a part as an array [n]."""
    return as_rows(record.images for record in writer.records[part])


def read_trained_on(path: Path) -> list[tuple[str, str]]:
    """Read (key, SHA-256) of the images that the base was trained on, as far as it knows.

    Raises:
        UserError: The file is missing or is not what the base stage writes.
    """
    try:
        return [(row["key"], row["sha256"]) for row in artifacts.read_jsonl(path)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by the base stage ({error}); run `dvc repro -f base`") from None


def exclude_leaked_images(workers: Workers, sets: Sequence[SetWriter], trained_on: Sequence[tuple[str, str]]) -> None:
    """Take out of every part the images that the base was trained on or that an earlier training part has.

    Raises:
        UserError: A part holds more of them than `shard.max_overlap_share` allows, or a sample of `base` itself.
    """
    seen = Seen()
    seen.add("base", as_rows(image_digest(sha256) for _, sha256 in trained_on))
    for writer, part in parts_in_order(sets):
        found = _find_leaked(writer, part, seen, set(trained_on) if writer is sets[0] else set())
        if found:
            writer.exclude(workers, found)
        if writer is sets[0] and part in TRAINING_PARTS:
            seen.add(part, image_digests(writer, part))


def parts_in_order(sets: Sequence[SetWriter]) -> list[tuple[SetWriter, str]]:
    """Return the training parts first, then the other parts of the data, then the evaluation sets."""
    order = [part for part in TRAINING_PARTS if part in sets[0].parts]
    order += [part for part in sets[0].parts if part not in TRAINING_PARTS]
    return [(sets[0], part) for part in order] + [(writer, part) for writer in sets[1:] for part in writer.parts]


def _find_leaked(
    writer: SetWriter, part: str, seen: Seen, trained_on: set[tuple[str, str]]
) -> dict[str, dict[tuple[str, str], str]]:
    """Return {job: {(part, key): reason}} of the images of `part` that were seen."""
    rows = seen.find(image_digests(writer, part))
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
                reason = f"the same picture is in {rows[number]}"  # stands in data/shards
                found.setdefault(record.job, {})[part, entry.key] = reason
                keys.append(entry.key)
            number += 1
    share = writer.rules.settings.max_overlap_share
    if len(keys) > share * number:
        raise UserError(
            f"{writer.source.name}: {len(keys)} of the {number} images of part `{part}` are also in "
            f"{', '.join(sorted(set(rows.values())))}, more than shard.max_overlap_share ({share:g}) allows: "
            f"{', '.join(keys[:NAMED])}; remove the doubles or change the parts"
        )
    log.warning("%s: %d of %d images left out: they are also in a training part", part, len(keys), number)
    return found
