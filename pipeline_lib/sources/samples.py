"""What a set is made of: samples with references to their images, and the one function that splits them into parts.

A sample holds no image, only a reference whose `read()` gives the bytes of the image file as they are, so that a
stream of samples costs the memory of its texts. `Splitter` is a pure function of a sample's key: a set that grows
moves no sample to another part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import openmoji

TEMPLATES = ("a photo of a {}", "a photo of the {}", "a picture of a {}", "an image of a {}")
CLASS_TASK = "class"  # the task of sets that have only one


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file; `path` as reachable from the current folder."""

    path: str

    @property
    def name(self) -> str:
        """File name, by which list files may call it."""
        return os.path.basename(self.path)

    @property
    def where(self) -> str:
        """How messages name it."""
        return self.path

    @property
    def size(self) -> int:
        """Bytes."""
        return os.stat(self.path).st_size

    def read(self) -> bytes:
        """The file's bytes."""
        with open(self.path, "rb", buffering=0) as file:
            return file.read()

    def stamp(self) -> list[Any]:
        """What changes when the file does: path, size, time of change."""
        status = os.stat(self.path)
        return [self.path, status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image inside a tar: `size` bytes of the file `path` from `offset` on."""

    path: str
    offset: int
    size: int
    member: str

    @property
    def name(self) -> str:
        """Last part of the member's name."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.path}: {self.member}"

    def stamp(self) -> list[Any]:
        """What changes when the image does: place, size of the tar, time of its change."""
        status = os.stat(self.path)
        return [self.path, self.offset, self.size, status.st_size, status.st_mtime_ns]

    def read(self) -> bytes:
        """The member's bytes."""
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), self.size, self.offset)


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A picture that is drawn when it is asked for (see `openmoji`)."""

    emoji: str
    font_digest: str

    @property
    def name(self) -> str:
        """None: list files call it by its key."""
        return ""

    @property
    def where(self) -> str:
        """How messages name it."""
        return "-".join(f"U+{ord(point):X}" for point in self.emoji)

    @property
    def size(self) -> int:
        """Unknown before it is drawn."""
        return 0

    def read(self) -> bytes:
        """The picture as PNG."""
        return openmoji.render(self.emoji)

    def stamp(self) -> list[Any]:
        """What changes when the picture does."""
        return [self.emoji, self.font_digest]


ImageRef = FileImage | TarImage | DrawnImage


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its captions and labels."""

    key: str
    image: ImageRef
    extension: str  # of the image file: lower case, no dot
    captions: tuple[str, ...] = ()  # stripped, none empty
    labels: Mapping[str, int] = field(default_factory=dict)  # task -> class index
    empty_captions: int = 0  # dropped


@dataclass(frozen=True, slots=True)
class Task:
    """A classification that labels refer to; templates hold `{}` for the class name."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


class Samples(Iterable[Sample]):
    """An iterable that starts anew each time, cut at `limit`; list files are looked up in `folder`."""

    def __init__(self, make: Callable[[], Iterable[Sample]], folder: Path, limit: int | None) -> None:
        """`make` gives all samples, always in the same order."""
        self.make, self.folder, self.limit = make, folder, limit

    def __iter__(self) -> Iterator[Sample]:
        """From the first sample on."""
        return iter(islice(self.make(), self.limit))


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar to be indexed in place."""

    path: Path
    sha256: str | None = None  # as an index file states it
    limit: int | None = None  # use the first n samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened set."""

    name: str  # how messages call it: `data` or `data.evaluation.<name>`
    samples: Samples
    captioned: bool  # whether a sample without a caption is a fault
    tasks: Mapping[str, Task] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str]] = ()  # (key, reason): left out by the set's own rules
    tars: tuple[TarFile, ...] = ()  # not empty: `samples` lie in these tars, in this order
    facts: Mapping[str, Any] = field(default_factory=dict)  # format, licence, ...


def make_sample(key: str, image: ImageRef, extension: str, captions: Iterable[Any], **more: Any) -> Sample:
    """A sample whose captions are stripped; empty ones (and null) are dropped and counted."""
    stripped = [_encodable(caption.strip()) if isinstance(caption, str) else "" for caption in captions]
    kept = tuple(caption for caption in stripped if caption)
    return Sample(_encodable(key), image, extension, kept, empty_captions=len(stripped) - len(kept), **more)


def _encodable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (half of a surrogate pair, a broken file name) written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def extension_of(name: str) -> str:
    """Lower-case extension without its dot; empty if there is none."""
    return os.path.splitext(name)[1][1:].lower()


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text, stripped, without empty ones."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


class Splitter:
    """Which part a sample belongs to: a pure function of its key, so that a growing set moves no sample.

    List files claim samples by key or image file name. The others are shared out by a hash of their key: a number
    in [0, 1), cut into intervals of the shares' lengths in the order in which they are written.
    """

    def __init__(self, parts: Mapping[str, float | str], folder: Path, name: str = "data") -> None:
        """Read the list files.

        Raises:
            UserError: A share is out of [0, 1], shares exceed 1 together, a list is missing, two lists hold one name.
        """
        self.parts = tuple(part for part, value in parts.items() if value != 0)
        self.claims: dict[str, str] = {}
        for part, value in parts.items():
            if isinstance(value, str):
                self._claim(part, folder / value, name)
        self.bounds: list[tuple[float, str]] = []
        total = 0.0
        for part, value in parts.items():
            if not isinstance(value, str):
                if not 0 <= value <= 1:
                    raise UserError(f"{name}.parts.{part}: a share must lie between 0 and 1, found {value}")
                total += value
                self.bounds.append((total if total < 1 - 1e-9 else 1.0, part))
        if total > 1 + 1e-9:
            raise UserError(f"{name}.parts: the shares add up to {total:g}, at most 1 is possible")

    def _claim(self, part: str, path: Path, name: str) -> None:
        if not path.is_file():
            raise UserError(
                f"{name}: list file {path} of part `{part}` does not exist; name one below the set's folder, or write "
                "a share such as 0.8"
            )
        for line in read_lines(path):
            if self.claims.setdefault(line, part) != part:
                raise UserError(f"{path}: {line} stands in the lists of parts `{self.claims[line]}` and `{part}`")

    def part_of(self, key: str, file_name: str = "") -> str | None:
        """The part of a sample, or None if it is in none."""
        if self.claims:
            claimed = self.claims.get(key) or self.claims.get(file_name)
            if claimed:
                return claimed
        if not self.bounds:
            return None
        place = _hash64(key) / 2**64
        return next((part for bound, part in self.bounds if place < bound), None)

    def __call__(self, sample: Sample) -> str | None:
        """The part of `sample`, or None if it is in none."""
        return self.part_of(sample.key, sample.image.name)


def split(samples: Samples, parts: Mapping[str, float | str]) -> dict[str, list[Sample]]:
    """All samples of each part, in the order of the set; samples in no part are left out.

    Raises:
        UserError: See `Splitter`.
    """
    splitter = Splitter(parts, samples.folder)
    found: dict[str, list[Sample]] = {part: [] for part in splitter.parts}
    for sample in samples:
        part = splitter(sample)
        if part is not None:
            found[part].append(sample)
    return found


def check_keys(named: Callable[[], Iterable[tuple[str, str]]], name: str) -> None:
    """Refuse keys that stand twice, in 8 bytes of memory per key.

    Args:
        named: Gives all (key, where it was found) each time it is called.
        name: The set, for the message.

    Raises:
        UserError: A key stands twice; both places are named.
    """
    digests = np.fromiter((_hash64(key) for key, _ in named()), dtype=np.uint64)
    values, counts = np.unique(digests, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: dict[str, str] = {}
    for key, where in named() if suspects else ():
        if _hash64(key) in suspects:
            if key in seen:
                if seen[key] == where:
                    raise UserError(f"{name}: key `{key}`: the line of {where} is there twice; delete one")
                raise UserError(f"{name}: key `{key}` stands twice: {seen[key]} and {where}; rename one of them")
            seen[key] = where


def _hash64(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
