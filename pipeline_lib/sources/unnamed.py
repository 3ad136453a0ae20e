"""Images that lie in the image folder of a set and that no row of its file names: forgotten rows, or files too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from pipeline_lib.sources.parts import hash64
from pipeline_lib.sources.samples import Sample, encodable, extension_of
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS

MAX_FILES = 2_000_000  # that are looked at: `images` may name a folder of much more than this set
BATCH = 10_000
NAMED = 3


class Unnamed(NamedTuple):
    """What no row names."""

    num_images: int = 0
    first: tuple[str, ...] = ()  # in the order of their paths, relative to the folder


def find_unnamed(folder: str, make: Callable[[], Iterable[Sample]]) -> Unnamed:
    """Find the image files below `folder` that none of the samples is of, by one walk and 8 bytes a sample.

    Hidden files and folders (a Mac's `._0.jpg`) and what lies behind links are not looked at.

    Args:
        folder: The image folder.
        make: Gives all samples of the set, those too that a split or a limit leaves out.
    """
    named = np.fromiter((hash64(os.path.normpath(sample.image.where)) for sample in make()), np.uint64)
    found = Unnamed()
    files = islice(_images(folder), MAX_FILES)
    while batch := list(islice(files, BATCH)):
        digests = np.array([hash64(encodable(os.path.normpath(path))) for path in batch], np.uint64)
        others = np.flatnonzero(~np.isin(digests, named))
        names = (encodable(os.path.relpath(batch[at], folder)) for at in others[:NAMED])
        found = Unnamed(found.num_images + len(others), (*found.first, *names)[:NAMED])
    return found


def _images(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and extension_of(name) in IMAGE_EXTENSIONS:
                yield os.path.join(parent, name)
