"""The pixels that are kept beside the teacher cache: decoded ahead, stored whole or not at all, or stored alone.

They decide nothing: a cache without them gives the same numbers and decodes each image again. See `teacher_cache` for
their names.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline_lib import model, terminal
from pipeline_lib.cache_teacher.reader import pixels_directory, pixels_identity, pixels_name
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, runtime, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import Clip

log = logging.getLogger(__name__)


class _ImageRows(Dataset[Any]):
    """Images of a part by (shard, row): decoded pixels for the student and, if it differs, for the teacher."""

    def __init__(self, part: shards.Part, student: Clip, teacher: Clip) -> None:
        self.part = part
        self.decoders = [student.preprocess]
        if dict(teacher.preprocess.config) != dict(student.preprocess.config):
            self.decoders.append(teacher.preprocess)
        self.entries: dict[int, list[Any]] = {}

    def __getitems__(self, places: list[tuple[int, int]]) -> Any:
        images: list[list[np.ndarray]] = [[] for _ in self.decoders]
        reasons = {}
        for shard_index, row in places:
            shard = self.part.shards[shard_index]
            if shard_index not in self.entries:
                self.entries = {shard_index: list(shards.read_index(shard.index_path))}
            entry = self.entries[shard_index][row]
            try:
                image_bytes = shard.read_image(entry)
                decoded = [decoder.decode(image_bytes, self.part.max_image_pixels) for decoder in self.decoders]
            except ValueError as error:
                reasons[row] = f"{entry.key}: {error}"
                decoded = [np.zeros((3, *decoder.image_size), dtype=np.uint8) for decoder in self.decoders]
            for into, image in zip(images, decoded, strict=True):
                into.append(image)
        return places, [torch.from_numpy(np.stack(image)) for image in images], reasons

    def __len__(self) -> int:
        return self.part.num_samples


def _keep(batch: Any) -> Any:
    return batch


def decoded(part: shards.Part, todo: Sequence[int], student: Clip, teacher: Clip, chunk: int, workers: int) -> Any:
    """Chunks of decoded images, shard after shard, decoded ahead by `workers` processes."""
    places = [
        [(index, row) for row in range(start, min(start + chunk, part.shards[index].num_samples))]
        for index in todo
        for start in range(0, part.shards[index].num_samples, chunk)
    ]
    dataset = _ImageRows(part, student, teacher)
    return DataLoader(
        dataset,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_keep,
        worker_init_fn=runtime.leave_ctrl_c_to_parent,
    )


@contextmanager
def new_file(path: Path, num_images: int, image_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """A file of uint8 [num_images, 3, H, W] to fill, at `path` once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(num_images, 3, *image_size))
    yield pixels
    pixels.flush()
    partial.replace(path)


def fits(settings: CacheTeacherSettings, num_samples: int, image_size: tuple[int, int], at: Path) -> bool:
    """Whether the uint8 pixels are stored: `always`, `never`, or (auto) within max_gb and half of the free disk.

    Raises:
        UserError: `always`, but the disk has no room.
    """
    needed = num_samples * 3 * image_size[0] * image_size[1]
    free = shutil.disk_usage(at).free
    log.info("pixel cache: %.2f GB needed, %.0f GB free", needed / 1e9, free / 1e9)
    if settings.pixels == "always" and needed > free:
        raise UserError(f"cache_teacher.pixels: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; use `auto`")
    small = needed <= settings.max_gb * 1e9 and needed <= free / 2
    return settings.pixels == "always" or (settings.pixels == "auto" and small)


def publish(folder: Path, known: dict[str, str], identity: dict[str, Any], paths: Paths) -> None:
    """Put `folder` with files of these hashes where readers look for pixels of this `identity`."""
    artifacts.write_manifest(folder, "cache_teacher", known=known, **identity)
    artifacts.publish(folder, pixels_directory(paths))


def run(paths: Paths, settings: CacheTeacherSettings, how: RuntimeSettings) -> None:
    """Store the pixels and nothing else: `dvc pull` brings a cache without them.

    Raises:
        UserError: Input is missing or broken, or the pixels do not fit.
    """
    student = model.load(paths.base)
    parts = shards.read_training_parts(paths.shards)
    num_images = sum(part.num_samples for part in parts)
    if not fits(settings, num_images, student.image_size, paths.shards):
        raise UserError(
            f"cache_teacher.pixels: `{settings.pixels}` stores none here; `auto` does within cache_teacher.max_gb and "
            "half of the free disk, `always` where the disk has room"
        )
    identity = pixels_identity(student.preprocess, parts[0])
    work = artifacts.work_directory("pixels", artifacts.digest([identity, [part.digest for part in parts]]))
    known = {}
    for part in parts:
        indices = range(len(part.shards))
        chunks = iter(decoded(part, indices, student, student, settings.chunk_size, how.num_workers))
        for index in terminal.progress(indices, label=f"pixels {part.name}", unit="shard", enabled=how.progress):
            entries = list(shards.read_index(part.shards[index].index_path))
            path = work / pixels_name(identity, entries)
            with new_file(path, len(entries), student.image_size) as pixels:
                for start in range(0, len(entries), settings.chunk_size):
                    if runtime.stop_requested():
                        raise runtime.Stopped
                    places, images, _ = next(chunks)
                    pixels[start : start + len(places)] = images[0].numpy()
            known[path.name] = artifacts.sha256_file(path)
    publish(work, known, identity, paths)
    log.info("pixels of %d images stored in %s", num_images, pixels_directory(paths))
