"""The format of sharded data, and its reader: tars that any webdataset reader understands, with an index beside each.

    data/shards/<part>/00000.tar      <escaped key>.jpg (the image file, byte for byte), .json (captions, labels), .cls
    data/shards/<part>/00000.jsonl    a line per sample in tar order, see `IndexEntry`
    data/shards/<part>/choices.jsonl  of a set of choices: which images and texts each is made of, see `core.choices`
    data/shards/<part>/manifest.json  shards with hashes and counts, tasks, where the part came from

The index makes a tar randomly accessible: `file[offset:offset + size]` is the image file, read with `pread`, so that
processes and threads share nothing. A part may also index tars that lie elsewhere (`in_place`), and then one tar may
serve several parts. Every image is compared with its hash when it is read: a tar in place is not ours to keep.
The package `shard` writes all this.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from pipeline_lib.core.choices import TABLE, Choice, read_choices
from pipeline_lib.core.errors import UserError

STAGE = "shard"
TRAINING_PARTS = ("refine", "val")  # what `cache_teacher` and `refine` read: never evaluated on, nor their images
LONGEST_NAME = 200  # bytes, of a part or set; files are named by it with something added
LEARNED_FROM = ("base", "refine")  # parts that models are trained on: nothing is chosen there


def text_digest(text: str) -> bytes:
    """Return 16 bytes that stand for a sample's key or a caption's text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def prompts_digest(classnames: Sequence[str], templates: Sequence[str]) -> str:
    """Return the hex SHA-256 of what a zero-shot accuracy depends on beside model and images.

    Public benchmarks of the same weights on the same images differ by up to 21 points where class names or templates
    differ, so a known answer may name the beginning of this digest.

    Args:
        classnames: Names in the order of the labels.
        templates: Prompt templates in order, each with `{}` where the class name goes.

    >>> prompts_digest(["cat", "hot dog"], ["a photo of a {}."])[:12]
    '24e4ce56aea6'
    """
    return artifacts.digest({"classnames": list(classnames), "templates": list(templates)})


def check_names(parts: Sequence[str], evaluation: Iterable[str]) -> None:
    """Refuse names of parts and evaluation sets that cannot be folders side by side.

    Raises:
        UserError: A name has other signs than letters, digits, - and _, is too long, or stands twice.
    """
    for name in (*parts, *evaluation):
        if not name.replace("_", "").replace("-", "").isalnum() or len(name.encode()) > LONGEST_NAME:
            raise UserError(
                f"data: `{name}` cannot name a part or set; use letters, digits, - and _ ({LONGEST_NAME} at most)"
            )
    for name in evaluation:
        if name in (*parts, "base"):
            raise UserError(f"data.evaluation.{name}: a part of `data.parts` has this name already; choose another")


def evaluated_sets(names: Sequence[str], selection: str, origin: str) -> list[str]:
    """Return those of the parts and sets that a model is evaluated on, beside the selection part.

    Args:
        names: All parts and sets.
        selection: The part on which choices are made.
        origin: Where they come from, for the message.

    Raises:
        UserError: The selection part is not there or is trained on, or nothing else is left.
    """
    free = [name for name in names if name not in LEARNED_FROM]
    if selection not in free:
        why = "models are trained on" if selection in LEARNED_FROM else "there is no part or set"
        raise UserError(
            f"{origin}: evaluate.selection: {why} `{selection}`; name one that none is trained on: "
            f"{', '.join(free) or 'add `val: 0.1` to data.parts'}"
        )
    found = [name for name in free if name not in {*TRAINING_PARTS, selection}]
    if not found:
        raise UserError(
            f"{origin}: data.parts: nothing to evaluate on; beside refine, val and the selection part add a part "
            "(`eval: 0.2`), or a set to data.evaluation"
        )
    return found


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One sample: where its image lies in the tar, and its texts."""

    key: str
    member: str  # name in the tar
    offset: int  # bytes
    size: int  # bytes
    sha256: str  # of the image file
    captions: tuple[str, ...]
    labels: Mapping[str, int]  # task -> class index

    def line(self) -> str:
        """Return the entry as a line of the index."""
        return artifacts.canonical_json({name: getattr(self, name) for name in self.__slots__}) + "\n"


_KINDS = {"key": str, "member": str, "offset": int, "size": int, "sha256": str, "captions": list, "labels": dict}


def read_index(path: Path) -> Iterator[IndexEntry]:
    """Yield the entries of an index file, one at a time.

    Raises:
        UserError: The file is missing, or a line is no entry.
    """
    for number, fields in enumerate(artifacts.read_jsonl(path), 1):
        if not _is_entry(fields):
            raise UserError(f"{path}: line {number} is no entry of an index; run `dvc repro -f shard`")
        yield IndexEntry(**{**fields, "captions": tuple(fields["captions"])})


def _is_entry(fields: Any) -> bool:
    """Return whether a value is an `IndexEntry`, each field of its kind; as strict as `schema.build`, and faster."""
    return (
        isinstance(fields, dict)
        and fields.keys() == _KINDS.keys()
        and all(type(fields[name]) is kind for name, kind in _KINDS.items())
        and all(type(caption) is str for caption in fields["captions"])
        and all(type(label) is int for label in fields["labels"].values())
    )


@dataclass
class Shard:
    """One tar and its index."""

    path: Path
    index_path: Path
    sha256: str
    num_bytes: int
    num_samples: int
    num_captions: int
    _entries: list[IndexEntry] | None = field(default=None, repr=False, compare=False)

    def samples(self) -> list[IndexEntry]:
        """Return the entries in tar order, read at the first call and then kept."""
        if self._entries is None:
            self._entries = self.read_samples()
        return self._entries

    def read_samples(self) -> list[IndexEntry]:
        """Read the entries in tar order, which are not kept here.

        Raises:
            UserError: The index is missing, damaged, or not as long as the manifest says.
        """
        entries = list(read_index(self.index_path))
        if len(entries) != self.num_samples:
            raise UserError(f"{self.index_path}: {len(entries)} lines, the manifest says {self.num_samples}")
        return entries

    def read_image(self, entry: IndexEntry) -> bytes:
        """Return the bytes of the image file of `entry`.

        Raises:
            UserError: The tar is shorter than the index says, or holds something else there.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), entry.size, entry.offset)
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file; run `dvc repro shard`") from None
        if len(data) != entry.size or artifacts.sha256_bytes(data) != entry.sha256:
            raise UserError(
                f"{self.path}: {entry.key}: bytes {entry.offset} to {entry.offset + entry.size} are not the image that "
                "was indexed; the tar was changed, run `dvc repro -f shard`"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index out: another process reads it for itself."""
        return {**self.__dict__, "_entries": None}


@dataclass
class Part:
    """A part of the data, or an evaluation set, as the manifest of its folder describes it."""

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the part."""
        return self.manifest["name"]

    @property
    def digest(self) -> str:
        """Return the digest of the manifest, which stands for the whole content."""
        return self.manifest["digest"]

    @property
    def num_samples(self) -> int:
        """Return the number of images."""
        return self.manifest["num_samples"]

    @property
    def num_captions(self) -> int:
        """Return the number of captions of all images."""
        return self.manifest["num_captions"]

    @property
    def max_image_pixels(self) -> int:
        """Return `shard.max_image_pixels` as it was: no image has more, and readers decode none that has."""
        return self.manifest["max_image_pixels"]

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """Return {task: {"classnames": [...], "templates": [...], "prompts": `prompts_digest`}}; templates hold {}."""
        return self.manifest["tasks"]

    @cached_property
    def shards(self) -> list[Shard]:
        """Return the shards in order."""
        return [
            Shard(
                path=Path(record["file"]) if self.manifest["in_place"] else self.directory / record["file"],
                index_path=self.directory / record["index"],
                sha256=record["sha256"],
                num_bytes=record["bytes"],
                num_samples=record["num_samples"],
                num_captions=record["num_captions"],
            )
            for record in self.manifest["shards"]
        ]

    @cached_property
    def choices(self) -> list[Choice]:
        """Return the choices that are scored; none where the set is not one of choices.

        Raises:
            UserError: The table is not the one that the manifest lists.
        """
        if TABLE not in self.manifest["files"]:
            return []
        artifacts.check_file(self.directory, TABLE, self.manifest)
        return [choice for choice in read_choices(self.directory) if not choice.left_out]

    def entries(self) -> Iterator[IndexEntry]:
        """Yield all entries in order, one shard's index in memory at a time."""
        for shard in self.shards:
            yield from read_index(shard.index_path)


def read_part(directory: Path) -> Part:
    """Open a part for reading; indexes are compared with their hashes, tars by size (`Shard.read_image` hashes images).

    Raises:
        UserError: The folder is missing, unfinished or changed, or a tar is missing or has another size.
    """
    part = Part(directory, artifacts.read_manifest(directory, stage=STAGE))
    if "shards" not in part.manifest:
        raise UserError(f"{directory}: not a part of sharded data; a part is a folder below paths.shards")
    for shard in part.shards:
        artifacts.check_file(directory, shard.index_path.name, part.manifest)
        if not os.path.isfile(shard.path):
            raise UserError(
                f"{shard.path}: no such file, but {directory}/manifest.json lists it; run `dvc repro shard`"
            )
        if shard.path.stat().st_size != shard.num_bytes:
            raise UserError(
                f"{shard.path}: {shard.path.stat().st_size} bytes, the manifest says {shard.num_bytes}; "
                "run `dvc repro -f shard`"
            )
    return part


def read_training_parts(directory: Path) -> list[Part]:
    """Open part `refine`, and `val` where the data have one.

    Raises:
        UserError: See `read_part`.
    """
    there = artifacts.read_manifest(directory, stage=STAGE)["parts"]
    return [read_part(directory / name) for name in TRAINING_PARTS if name in there or name == "refine"]


def verify_in_place(part: Part) -> list[str]:
    """Compare tars that lie elsewhere with the manifest of the part; return what differs, one line each."""
    return [
        f"{shard.path}: SHA-256 differs from the manifest"
        for shard in part.shards
        if part.manifest["in_place"] and artifacts.sha256_file(shard.path) != shard.sha256
    ]
