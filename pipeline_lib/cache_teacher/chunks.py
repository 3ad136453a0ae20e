"""Decoded images, a chunk at a time: read ahead by other processes, their pixels stored on the way to the teacher."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.cache_teacher.pixels import new_file
from pipeline_lib.cache_teacher.unit import Unit
from pipeline_lib.core import shards
from pipeline_lib.core.read_ahead import read_ahead
from pipeline_lib.model import Preprocess


class Chunk(NamedTuple):
    """Neighbouring images of one unit, as many as the teacher sees at once (fewer at the end of the unit)."""

    number: int  # of the unit, among those that are read
    start: int  # row of the first image in its unit
    student_pixels: torch.Tensor  # uint8 [n, 3, H, W]
    teacher_pixels: torch.Tensor  # the same tensor where both models preprocess alike
    faults: dict[int, str]  # rows of the unit whose image does not decode, with the reason; their pixels are 0


class _Chunks:
    """The chunks of some units, in order. Picklable, so that decoders may be processes."""

    def __init__(self, units: Sequence[Unit], teacher: Preprocess, chunk_size: int) -> None:
        self.units, self.teacher = units, teacher
        self.spans = [
            (number, range(start, min(start + chunk_size, unit.shard.num_samples)))
            for number, unit in enumerate(units)
            for start in range(0, unit.shard.num_samples, chunk_size)
        ]
        self._entries: dict[int, list[shards.IndexEntry]] = {}  # of the unit that was read last

    def __getitem__(self, index: int) -> Chunk:
        number, rows = self.spans[index]
        unit = self.units[number]
        if number not in self._entries:
            self._entries = {number: unit.read_entries()}
        decoders = [unit.preprocess]
        if dict(self.teacher.config) != dict(unit.preprocess.config):
            decoders.append(self.teacher)
        images, faults = [], {}
        for row in rows:
            entry = self._entries[number][row]
            try:
                images.append(_decode(unit, entry, decoders))
            except ValueError as error:
                faults[row] = f"{entry.key}: {error}"
                images.append([np.zeros((3, *decoder.image_size), dtype=np.uint8) for decoder in decoders])
        stacked = [torch.from_numpy(np.stack(same)) for same in zip(*images, strict=True)]
        return Chunk(number, rows.start, student_pixels=stacked[0], teacher_pixels=stacked[-1], faults=faults)

    def __len__(self) -> int:
        return len(self.spans)


def _decode(unit: Unit, entry: shards.IndexEntry, decoders: Sequence[Preprocess]) -> list[np.ndarray]:
    image_bytes = unit.shard.read_image(entry)
    return [decoder.decode(image_bytes, unit.part.max_image_pixels) for decoder in decoders]


def decode_ahead(
    units: Sequence[Unit], teacher: Preprocess, chunk_size: int, num_workers: int
) -> Iterator[tuple[Unit, Iterator[Chunk]]]:
    """Decode the images of `units`, ahead of their use by `num_workers` processes; yield each unit with its chunks."""
    decoded = read_ahead(_Chunks(units, teacher, chunk_size), num_workers=num_workers)
    for number, chunks in itertools.groupby(decoded, key=lambda chunk: chunk.number):
        yield units[number], _whole(units[number], chunks)


def _whole(unit: Unit, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass on the chunks of a unit; refuse to end before its last row."""
    num_images = 0
    for chunk in chunks:
        num_images += len(chunk.student_pixels)
        yield chunk
    if num_images != unit.shard.num_samples:
        raise AssertionError(
            f"{unit.name}: {num_images} images came, of {unit.shard.num_samples}; read it unit by unit"
        )


def store_pixels(path: Path, unit: Unit, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Pass on the chunks of a unit, and write the student's pixels to `path` meanwhile, whole or not at all."""
    with new_file(path, unit.shard.num_samples, unit.preprocess.image_size) as file:
        for chunk in chunks:
            file[chunk.start : chunk.start + len(chunk.student_pixels)] = chunk.student_pixels.numpy()
            yield chunk
