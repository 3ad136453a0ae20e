"""Decoded images, a chunk at a time: read ahead by other processes, their pixels stored on the way to the teacher."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.cache_teacher.pixels import new_file
from pipeline_lib.cache_teacher.unit import Group, Unit, count_images
from pipeline_lib.core import shards
from pipeline_lib.core.read_ahead import read_ahead
from pipeline_lib.model import Preprocess


class Chunk(NamedTuple):
    """Neighbouring images of a group of units, as many as the teacher sees at once (fewer at the end of the group)."""

    number: int  # of the group, among those that are read
    student_pixels: torch.Tensor  # uint8 [n, 3, H, W]
    teacher_pixels: torch.Tensor  # the same tensor where both models preprocess alike
    faults: list[str]  # of each image why it does not decode, its pixels are 0; "": it does


class _Chunks:
    """The chunks of some groups, in order. Picklable, so that decoders may be processes."""

    def __init__(self, groups: Sequence[Group], teacher: Preprocess, chunk_size: int) -> None:
        self.groups, self.teacher = groups, teacher
        self.spans = [
            (number, slice(start, start + chunk_size))
            for number, group in enumerate(groups)
            for start in range(0, count_images(group), chunk_size)
        ]
        self._images: dict[int, list[tuple[Unit, shards.IndexEntry]]] = {}  # of the group that was read last

    def __getitem__(self, index: int) -> Chunk:
        number, rows = self.spans[index]
        if number not in self._images:
            self._images = {number: [(unit, entry) for unit in self.groups[number] for entry in unit.read_entries()]}
        decoders = [self.groups[number][0].preprocess]
        if dict(self.teacher.config) != dict(decoders[0].config):
            decoders.append(self.teacher)
        images, faults = [], []
        for unit, entry in self._images[number][rows]:
            fault = ""
            try:
                images.append(_decode(unit, entry, decoders))
            except ValueError as error:
                fault = f"{entry.key}: {error}"
                images.append([np.zeros((3, *decoder.image_size), dtype=np.uint8) for decoder in decoders])
            faults.append(fault)
        stacked = [torch.from_numpy(np.stack(same)) for same in zip(*images, strict=True)]
        return Chunk(number, student_pixels=stacked[0], teacher_pixels=stacked[-1], faults=faults)

    def __len__(self) -> int:
        return len(self.spans)


def _decode(unit: Unit, entry: shards.IndexEntry, decoders: Sequence[Preprocess]) -> list[np.ndarray]:
    image_bytes = unit.shard.read_image(entry)
    return [decoder.decode(image_bytes, unit.part.max_image_pixels) for decoder in decoders]


def decode_ahead(
    groups: Sequence[Group], teacher: Preprocess, chunk_size: int, num_workers: int
) -> Iterator[tuple[Group, Iterator[Chunk]]]:
    """Decode the images of `groups`, ahead of use by `num_workers` processes; yield each group with its chunks."""
    decoded = read_ahead(_Chunks(groups, teacher, chunk_size), num_workers=num_workers)
    for number, chunks in itertools.groupby(decoded, key=lambda chunk: chunk.number):
        yield groups[number], _whole(groups[number], chunks)


def _whole(group: Group, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass on the chunks of a group; refuse to end before its last row."""
    num_images = 0
    for chunk in chunks:
        num_images += len(chunk.student_pixels)
        yield chunk
    if num_images != count_images(group):
        raise AssertionError(
            f"{group[0].name}: {num_images} images came, of {count_images(group)}; read it group by group"
        )


def store_pixels(paths: Sequence[Path], group: Group, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass on the chunks of a group, and write the student's pixels of each unit to its path, whole or not at all."""
    rows = _rows(paths, group)
    for chunk in chunks:
        for image, row in zip(chunk.student_pixels.numpy(), rows, strict=False):
            row[...] = image
        yield chunk
    next(rows, None)  # closes the last file


def _rows(paths: Sequence[Path], group: Group) -> Iterator[np.ndarray]:
    """Yield the rows of one new file after another, to be filled; asking for more ends the file that is full."""
    for path, unit in zip(paths, group, strict=True):
        with new_file(path, unit.shard.num_samples, unit.preprocess.image_size) as file:
            yield from file
