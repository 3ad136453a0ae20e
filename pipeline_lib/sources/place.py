"""The place of a set: where it lies on disk, which files a format finds there, and how messages name it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.parts import Cut, Splitter, checked
from pipeline_lib.sources.samples import Sample, Samples, Source

Make = Callable[[], Iterable[Sample]]  # gives all samples, in the same order each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a set lies, as params.yaml says it; every format opens one."""

    name: str  # how messages call the set: `data` or `data.evaluation.<name>`
    format: str
    root: Path  # folder or file
    images: str | None = None
    annotations: str | None = None
    split: str | None = None
    language: str | None = None
    limit: int | None = None  # of the samples of each part
    parts: Mapping[str, float | str] = field(default_factory=lambda: {"all": 1.0})
    evaluated_only: bool = False  # no captions are needed if there are labels

    @property
    def folder(self) -> Path:
        """The folder that `images`, `annotations` and list files are relative to."""
        return self.root.parent if self.root.is_file() else self.root

    def refuse(self, *keys: str) -> None:
        """Refuse keys of params.yaml that mean nothing for the format.

        Raises:
            UserError: One of `keys` has a value.
        """
        for key in keys:
            if getattr(self, key) is not None:
                raise UserError(f"{self.name}.{key}: format {self.format} does not use it; write null")

    def find_captions_file(self, patterns: Sequence[str], others: Sequence[str] = ()) -> Path:
        """Find the captions file: `root` itself, `annotations`, or the only file in the folder that fits a pattern.

        Where none fits, one that is packed by gzip is looked for, and then one of the patterns `others`.

        Raises:
            UserError: There is none, or several fit.
        """
        if self.root.is_file():
            return self.root
        if self.annotations is not None:
            path = self.folder / self.annotations
            if not os.path.isfile(path):
                raise UserError(f"{self.name}.annotations: {path} does not exist")
            return path
        found: list[Path] = []
        for turn in (patterns, [f"{pattern}.gz" for pattern in patterns], others):
            found = found or sorted({path for pattern in turn for path in self.folder.glob(pattern) if path.is_file()})
        if len(found) != 1:
            what = f"several fit ({', '.join(p.name for p in found[:4])})" if found else f"no {' or '.join(patterns)}"
            key = "path" if self.evaluated_only else "annotations"
            raise UserError(f"{self.name}.{key}: which file of {self.folder} holds the captions? {what}; name it")
        return found[0]

    def find_image_folder(self, usual: Sequence[str], inside: str = "") -> str:
        """Find the image folder: `images`, or the first of the format's usual ones that exists.

        Args:
            usual: The format's usual ones.
            inside: A folder that must lie in it.

        Raises:
            UserError: There is none.
        """
        names = usual if self.images is None else [self.images]
        for name in names:
            if os.path.isdir(self.folder / name / inside):
                return str(self.folder / name)
        raise UserError(f"{self.name}.images: no folder {' or '.join(names)} in {self.folder}; name the image folder")

    def make_source(self, make: Make, splits: Sequence[str] = (), image_folder: str = "", **more: Any) -> Source:
        """Make the `Source` of the samples that `make` gives, cut to `split` and to the first `limit` of each part.

        Args:
            make: Gives all samples, in the same order each time.
            splits: The splits that the set is published with; `split` is one of them or a list file.
            image_folder: The folder below which the rows of the set's file name the images.
            more: Further fields of `Source`.

        Raises:
            UserError: `split` is neither, or see `Splitter`.
        """
        chosen = make if self.split is None else self._in_split(make, self.split, splits)
        chosen = chosen if self.limit is None else self._first(chosen, self.limit, splits)
        samples = Samples(chosen, self.folder, splits, whole=self.limit is None)
        return Source(name=self.name, samples=samples, all_samples=make, image_folder=image_folder, **more)

    def _in_split(self, make: Make, split: str, splits: Sequence[str]) -> Make:
        splitter = Splitter({"chosen": split}, self.folder, self.name, splits)

        def chosen() -> Iterable[Sample]:
            samples = checked(make(), splitter, whole=self.limit is None)
            return (sample for sample in samples if splitter(sample))

        return chosen

    def _first(self, make: Make, limit: int, splits: Sequence[str]) -> Make:
        splitter = Splitter(self.parts, self.folder, self.name, splits)
        return lambda: Cut.begin(splitter, limit).first(make())
