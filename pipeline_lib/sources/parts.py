"""Which part a sample belongs to: a pure function of its key, so that a set that grows moves no sample to another part.

    data:
      parts: {val: val.txt, refine: 0.7, eval: 0.3}

Here the samples that the list file `val.txt` names are `val`, and the others are shared out by a hash of their key. A
set that is published with splits has their names in place of list files. A line of a list that names no sample, or two,
is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.samples import Sample, Samples, read_lines


class Splitter:
    """Say which part a sample belongs to.

    The set's own splits claim the samples that belong to them, and list files those that they name: by key, by path
    with or without its extension, or by the end of such a path. The others are shared out by a hash of their key: a
    number in [0, 1), cut into intervals of the shares' lengths in the order in which they are written.
    """

    def __init__(
        self, parts: Mapping[str, float | str], folder: Path, name: str = "data", splits: Sequence[str] = ()
    ) -> None:
        """Read the list files.

        Args:
            parts: Each with a share, the name of a list file in `folder`, or one of the splits.
            folder: Where list files are.
            name: How messages call the set.
            splits: The set's own.

        Raises:
            UserError: A share is out of [0, 1], shares exceed 1 together, a list is missing, or two parts claim one
                name or one split.
        """
        self.parts = tuple(part for part, value in parts.items() if value != 0)
        self.name = name
        self.claims: dict[str, str] = {}  # line of a list file -> part
        self.lists: dict[str, Path] = {}  # part -> list file
        self.published: dict[str, str] = {}  # split -> part
        for part, value in parts.items():
            if value in splits:
                if self.published.setdefault(str(value), part) != part:
                    raise UserError(
                        f"{name}.parts.{part}: `{self.published[str(value)]}` has the split {value} already"
                    )
            elif isinstance(value, str):
                self._claim(part, folder / value, splits)
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

    def _claim(self, part: str, path: Path, splits: Sequence[str]) -> None:
        if not os.path.isfile(path):
            own = f" or one of the set's own splits ({', '.join(splits)})" if splits else ""
            raise UserError(
                f"{self.name}: list file {path} of part `{part}` does not exist; name one below the set's folder{own}, "
                "or write a share such as 0.8"
            )
        self.lists[part] = path
        for line in (line.removeprefix("./") for line in read_lines(path)):
            if self.claims.setdefault(line, part) != part:
                raise UserError(f"{path}: {line} stands in the lists of parts `{self.claims[line]}` and `{part}`")

    def part_of(self, key: str, file_name: str = "", split: str = "", where: str = "") -> str | None:
        """Return the part of a sample, or None if it is in none.

        Raises:
            UserError: Two parts claim it.
        """
        claimed = {self.claims[line]: line for line in self.lines_of(key, file_name, where)}
        if split in self.published:
            claimed.setdefault(self.published[split], f"split {split}")
        if len(claimed) > 1:
            both = " and ".join(f"`{part}` (as {line})" for part, line in claimed.items())
            raise UserError(f"{self.name}.parts: sample `{key}` is claimed by {both}; leave it to one of them")
        if claimed:
            return next(iter(claimed))
        if not self.bounds:
            return None
        position = hash64(key) / 2**64
        return next((part for bound, part in self.bounds if position < bound), None)

    def lines_of(self, key: str, file_name: str = "", where: str = "") -> list[str]:
        """Return the lines of the list files that name a sample: those with its whole name, else with the end of it."""
        if not self.claims:
            return []
        whole = dict.fromkeys((key, key + os.path.splitext(file_name)[1], where))
        ends = dict.fromkeys(end for name in whole for end in _ends(name))
        return [name for name in whole if name in self.claims] or [name for name in ends if name in self.claims]

    def __call__(self, sample: Sample) -> str | None:
        """Return the part of `sample`, or None if it is in none."""
        return self.part_of(sample.key, sample.image.name, sample.split, sample.image.where)


def _ends(path: str) -> Iterator[str]:
    """Yield what follows each `/` of a path."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


@dataclass(slots=True)
class ListCheck:
    """Whether each line of the list files names one image, found while the samples pass by."""

    splitter: Splitter
    named: dict[str, str] = field(default_factory=dict)  # line -> the image that it names
    example: str = ""  # the first key

    def see(self, sample: Sample) -> None:
        """Take note of the lines that name `sample`.

        Raises:
            UserError: One of them names another image too.
        """
        self.example = self.example or sample.key
        for line in self.splitter.lines_of(sample.key, sample.image.name, sample.image.where):
            self.add(line, sample.image.where)

    def add(self, line: str, where: str) -> None:
        """Take note that `line` names the image `where`.

        Raises:
            UserError: It names another one too.
        """
        if self.named.setdefault(line, where) != where:
            path = self.splitter.lists[self.splitter.claims[line]]
            raise UserError(f"{path}: {line} may be {self.named[line]} or {where}; write their whole paths")

    def finish(self) -> None:
        """Refuse lines that name no image: their samples would go where the shares put them.

        Raises:
            UserError: There are such lines.
        """
        for part, path in self.splitter.lists.items() if self.example else ():  # an empty set is refused as such
            lines = [line for line, claiming in self.splitter.claims.items() if claiming == part]
            lost = [line for line in lines if line not in self.named]
            if lost:
                raise UserError(
                    f"{path}: {len(lost)} of its {len(lines)} lines name no sample of the set, such as {lost[0]}; a "
                    f"key is like {self.example}; mend the list"
                )


def checked(samples: Iterable[Sample], splitter: Splitter, *, whole: bool) -> Iterator[Sample]:
    """Yield all samples, and at the end (of a `whole` set) check that each line of the lists named one of them.

    Raises:
        UserError: See `ListCheck`.
    """
    check = ListCheck(splitter)
    for sample in samples:
        check.see(sample)
        yield sample
    if whole:
        check.finish()


@dataclass(slots=True)
class Cut:
    """The first samples of each part, for a trial run: a part that the whole set fills is not left empty."""

    splitter: Splitter
    left: dict[str, int]  # how many samples each part still takes

    @classmethod
    def begin(cls, splitter: Splitter, limit: int) -> Cut:
        """Begin with room for `limit` samples of each part, or for as many as its list names."""
        named = Counter(splitter.claims.values())
        room = {part: min(limit, named[part]) if part in splitter.lists else limit for part in splitter.parts}
        return cls(splitter, room)

    @property
    def is_full(self) -> bool:
        """Return whether no part takes more."""
        return not any(self.left.values())

    def takes(self, part: str | None) -> bool:
        """Count a sample of `part` and return whether it is one of the first; what is in no part never is."""
        if part is None or not self.left[part]:
            return False
        self.left[part] -= 1
        return True

    def first(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the first samples of each part, in the order of the set."""
        for sample in samples:
            if self.takes(self.splitter(sample)):
                yield sample
            if self.is_full:
                return


def split(samples: Samples, parts: Mapping[str, float | str]) -> dict[str, list[Sample]]:
    """Return all samples of each part, in the order of the set; samples in no part are left out.

    Raises:
        UserError: See `Splitter` and `ListCheck`.
    """
    splitter = Splitter(parts, samples.folder, splits=samples.splits)
    found: dict[str, list[Sample]] = {part: [] for part in splitter.parts}
    for sample in checked(samples, splitter, whole=samples.whole):
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
    digests = np.fromiter((hash64(key) for key, _ in named()), dtype=np.uint64)
    values, counts = np.unique(digests, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: dict[str, str] = {}
    for key, where in named() if suspects else ():
        if hash64(key) in suspects:
            if key in seen:
                if seen[key] == where:
                    raise UserError(f"{name}: key `{key}`: the line of {where} is there twice; delete one")
                raise UserError(f"{name}: key `{key}` stands twice: {seen[key]} and {where}; rename one of them")
            seen[key] = where


def hash64(key: str) -> int:
    """Return 64 bits that stand for a key, the same in every release."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
