"""Train/test leakage: no picture that was trained on stays in a part that is evaluated.

First `refine`, then `val`, then every other part and evaluation set lose the pictures that the base was trained on or
that an earlier training part holds: the same file, the same pixels in another encoding, or the same picture encoded
anew with loss. They are left out, counted and named; above `shard.max_overlap_share` the stage fails. Pictures that are
only similar (a smaller or slightly cut copy, or neighbours in a film) stay, counted and said. Of what the base was
trained on only hashes are known, so that similar pictures are not found there. A base that was refined before may be
refined on the same pictures once more.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.images import open_rgb
from pipeline_lib.core.shards import TRAINING_PARTS, IndexEntry, Shard, read_index
from pipeline_lib.shard.images import FORMATS, compare
from pipeline_lib.shard.records import Record, image_digest
from pipeline_lib.shard.set_writer import NAMED, SetWriter
from pipeline_lib.shard.workers import Workers

log = logging.getLogger(__name__)
MOST_BITS = 10  # by which outlines of one picture may differ; see `images.outline`
CANDIDATES = 8  # trained images that one image is compared with: pictures on plain grounds share their outlines


class Prints(NamedTuple):
    """What stands for the n images of a part."""

    files: np.ndarray  # [n], digests of 16 bytes
    pixels: np.ndarray  # [n], digests of 16 bytes
    outlines: np.ndarray  # [n, 2], 64 bits each


@dataclass(frozen=True, slots=True)
class Trained:
    """Images that were trained on."""

    name: str
    prints: Prints
    writer: SetWriter | None = None  # of a part, whose pictures can be looked at

    def holds(self, prints: Prints) -> np.ndarray:
        """Return which of the n images are among these, bool [n]: the same file, or the same pixels."""
        return np.isin(prints.files, self.prints.files) | np.isin(prints.pixels, self.prints.pixels)

    def candidates(self, outlines: np.ndarray) -> Iterator[tuple[int, list[int]]]:
        """Yield the row of each of the outlines [n, 2] that has some like it here, and their rows, nearest first."""
        first, second = np.ascontiguousarray(self.prints.outlines.T)
        for row, outline in enumerate(outlines):
            near = np.flatnonzero(np.bitwise_count(first ^ outline[0]) <= MOST_BITS)  # half of the bits: almost none
            apart = np.bitwise_count(first[near] ^ outline[0]) + np.bitwise_count(second[near] ^ outline[1])
            near, apart = near[apart <= MOST_BITS], apart[apart <= MOST_BITS]
            if len(near):
                yield row, near[np.argsort(apart, kind="stable")[:CANDIDATES]].tolist()


@dataclass(slots=True)
class Found:
    """The rows of a part that were trained on, and the part that has them."""

    leaked: dict[int, str] = field(default_factory=dict)
    anew: set[int] = field(default_factory=set)  # those of them that are encoded anew with loss
    similar: dict[int, str] = field(default_factory=dict)  # not leaked

    def reason(self, row: int) -> str:
        """Return why a leaked image is left out, as it stands in data/shards."""
        return f"the same picture{', encoded anew,' if row in self.anew else ''} is in {self.leaked[row]}"


def as_rows(digests: Iterable[bytes | bytearray]) -> np.ndarray:
    """Return 16-byte digests as an array [n] that numpy can sort and compare."""
    return np.frombuffer(b"".join(digests), dtype="S16")


def image_digests(writer: SetWriter, part: str) -> np.ndarray:
    """Return the digests of the image files of a part as an array [n]."""
    return as_rows(record.images for record in writer.records[part])


def _prints(writer: SetWriter, part: str) -> Prints:
    records = writer.records[part]
    outlines = np.frombuffer(b"".join(record.outlines for record in records), np.uint64).reshape(-1, 2)
    return Prints(image_digests(writer, part), as_rows(record.pixels for record in records), outlines)


def read_trained_on(path: Path) -> list[dict[str, str]]:
    """Read `key`, `sha256` and, where it is known, `pixels` of the images that the base was trained on.

    Raises:
        UserError: The file is missing or is not what the base stage writes.
    """
    try:
        rows = list(artifacts.read_jsonl(path))
        found = [{"key": row["key"], "sha256": row["sha256"], "pixels": row.get("pixels", "")} for row in rows]
        if not all(isinstance(value, str) for row in found for value in row.values()):
            raise TypeError("a value that is no text")
        return found
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by the base stage ({error}); run `dvc repro -f base`") from None


def exclude_leaked_images(
    workers: Workers, sets: Sequence[SetWriter], trained_on: Sequence[Mapping[str, str]], *, trains_again: bool = False
) -> None:
    """Take out of every part the images that the base was trained on or that an earlier training part has.

    Args:
        workers: Write the shards of a part again.
        sets: Written; the data first.
        trained_on: What the base was trained on, see `read_trained_on`.
        trains_again: The base is a model that was refined before: part `refine` may hold what it was trained on.

    Raises:
        UserError: A part holds more of them than `shard.max_overlap_share` allows, or a sample of `base` itself.
    """
    files = as_rows(image_digest(row["sha256"]) for row in trained_on)
    pixels = as_rows(bytes.fromhex(row["pixels"]) for row in trained_on)
    trained = [Trained("base", Prints(files, pixels, np.empty((0, 2), np.uint64)))]
    of_base = set() if trains_again else {(row["key"], row["sha256"]) for row in trained_on}
    for writer, part in parts_in_order(sets):
        found = Found() if trains_again and writer is sets[0] and part == "refine" else _find(writer, part, trained)
        again = _name(writer, part, found, of_base if writer is sets[0] else set())
        if again:
            writer.exclude(workers, again)
        if writer is sets[0] and part in TRAINING_PARTS:
            trained.append(Trained(part, _prints(writer, part), writer))


def parts_in_order(sets: Sequence[SetWriter]) -> list[tuple[SetWriter, str]]:
    """Return the training parts first, then the other parts of the data, then the evaluation sets."""
    order = [part for part in TRAINING_PARTS if part in sets[0].parts]
    order += [part for part in sets[0].parts if part not in TRAINING_PARTS]
    return [(sets[0], part) for part in order] + [(writer, part) for writer in sets[1:] for part in writer.parts]


def _find(writer: SetWriter, part: str, trained: Sequence[Trained]) -> Found:
    """Find the images of `part` among those that were trained on."""
    prints, found = _prints(writer, part), Found()
    for one in trained:
        for row in np.flatnonzero(one.holds(prints)):
            found.leaked.setdefault(int(row), one.name)
    for one in trained:
        if one.writer is not None:
            candidates = {row: rows for row, rows in one.candidates(prints.outlines) if row not in found.leaked}
            _look(writer, part, one.name, one.writer, candidates, found)
    return found


def _look(
    writer: SetWriter, part: str, name: str, trained: SetWriter, candidates: Mapping[int, list[int]], found: Found
) -> None:
    """Compare pictures of `part` with their candidates in the training part `name`; add to `found` what is alike."""
    own = _entries(writer, part, candidates)
    theirs = _entries(trained, name, {row for rows in candidates.values() for row in rows})
    for row, rows in candidates.items():
        picture = _open(writer, *own[row])
        for candidate in rows:
            verdict = compare(picture, _open(trained, *theirs[candidate]))
            if verdict == "same":
                found.similar.pop(row, None)
                found.leaked[row] = name
                found.anew.add(row)
                break
            if verdict == "similar":
                found.similar.setdefault(row, name)


def _entries(writer: SetWriter, part: str, rows: Collection[int]) -> dict[int, tuple[Record, IndexEntry]]:
    """Return the images of a part at `rows`, and the shards that they are in."""
    if not rows:
        return {}
    full = [record for record in writer.records[part] if record.num_samples]
    folder = writer.rules.output / part
    numbered = enumerate((record, entry) for record in full for entry in read_index(folder / record.index))
    return {row: pair for row, pair in numbered if row in rows}


def _open(writer: SetWriter, record: Record, entry: IndexEntry) -> Image.Image:
    """Return a picture in RGB."""
    folder = writer.rules.output / record.part
    path = Path(record.file) if writer.source.tars else folder / record.file
    counts = record.num_bytes, record.num_samples, record.num_captions
    shard = Shard(path, folder / record.index, record.sha256, *counts)
    Image.MAX_IMAGE_PIXELS = writer.rules.settings.max_image_pixels
    return open_rgb(shard.read_image(entry), FORMATS)


def _name(
    writer: SetWriter, part: str, found: Found, of_base: set[tuple[str, str]]
) -> dict[str, dict[tuple[str, str], str]]:
    """Log what was found in `part`; return the leaked images as {job: {(part, key): reason}}."""
    number = sum(record.num_samples for record in writer.records[part])
    entries = _entries(writer, part, {*found.leaked, *found.similar})
    writer.similar[part] = [(entries[row][1].key, name) for row, name in sorted(found.similar.items())]
    if found.similar:
        named = _names(found.similar, entries)
        log.warning("%s: %d of %d images are similar to one in %s", part, len(found.similar), number, named)
    again: dict[str, dict[tuple[str, str], str]] = {}
    for row in sorted(found.leaked):
        record, entry = entries[row]
        if (entry.key, entry.sha256) in of_base:
            raise UserError(
                f"{writer.source.name}: `{entry.key}` of part `{part}` is among the images that the base was "
                f"trained on ({artifacts.TRAINED_ON}); run `dvc repro base` with these parts"
            )
        again.setdefault(record.job, {})[part, entry.key] = found.reason(row)
    share = writer.rules.settings.max_overlap_share
    if len(found.leaked) > share * number:
        raise UserError(
            f"{writer.source.name}: {len(found.leaked)} of the {number} images of part `{part}` are also in "
            f"{_names(found.leaked, entries)}, more than shard.max_overlap_share ({share:g}) allows; remove the "
            "doubles or change the parts"
        )
    if found.leaked:
        log.warning("%s: %d of %d images left out: they are also in a training part", part, len(found.leaked), number)
    return again


def _names(parts: Mapping[int, str], entries: Mapping[int, tuple[Record, IndexEntry]]) -> str:
    """Write the parts that have these rows, and the first keys."""
    keys = [entries[row][1].key for row in sorted(parts)]
    named = ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")
    return f"{', '.join(sorted(set(parts.values())))} ({named})"
