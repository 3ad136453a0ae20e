"""The pixels that are kept beside the teacher cache: their names, files and place.

Where they fit, the uint8 pixels that the student's PIL steps give lie in `data/pixels`, `.npy` [N, 3, H, W] a shard, so
that no later stage decodes an image. They are what decoding the shards gives, so they decide nothing, are no output of
the pipeline and stay on their machine. A file's name is a digest of all that its content depends on: whoever finds it
may use it, while others write or remove files; whoever does not find it decodes.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, provenance, shards, work_folders
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.model import Preprocess

log = logging.getLogger(__name__)
DECODERS = ("pillow", "torchvision", "open_clip_torch")  # packages that turn an image file into pixels


# --- names ------------------------------------------------------------------------------------------------------


def pixels_directory(paths: Paths) -> Path:
    """Return where this machine keeps pixels: one folder for the project and all experiments in temporary folders."""
    return Path(os.environ.get("DVC_ROOT", ""), paths.pixels)  # DVC gives an experiment the main repository


def pixels_identity(preprocess: Preprocess, part: shards.Part) -> dict[str, Any]:
    """Return what the pixels of a part depend on beside the image files, as JSON values."""
    return {
        "preprocess": dict(preprocess.config),
        "max_image_pixels": part.max_image_pixels,
        "packages": _decoder_versions(),
    }


def pixels_name(identity: Mapping[str, Any], entries: Sequence[shards.IndexEntry]) -> str:
    """Return the name of the file with the pixels of a shard that holds `entries`."""
    return f"{artifacts.digest([identity, [entry.sha256 for entry in entries]])[:32]}.npy"


@cache
def _decoder_versions() -> dict[str, str]:
    versions = provenance.package_versions()
    return {name: versions[name] for name in DECODERS}


# --- files ------------------------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path, num_images: int, image_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield uint8 [num_images, 3, H, W] to fill; what it holds is at `path` once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(num_images, 3, *image_size))
    yield pixels
    pixels.flush()
    partial.replace(path)


class ShardPixels(NamedTuple):
    """What the file with the pixels of a shard must be."""

    name: str
    num_images: int
    example: tuple[int, shards.Shard, shards.IndexEntry] | None  # a row and its image; None: no image decodes


def open_pixels(
    directory: Path, expected: Sequence[ShardPixels], preprocess: Preprocess, max_pixels: int
) -> list[np.ndarray]:
    """Open the pixels of all shards of a part; [] if a file is missing or is not the one that was written.

    Each file is compared with its hash, and one of its images with what the image file gives.
    """
    opened: list[np.ndarray] = []
    try:
        manifest = artifacts.read_manifest(directory)
    except UserError:
        return []
    for one in expected:
        try:
            pixels = _open_file(directory, one.name, (one.num_images, 3, *preprocess.image_size), manifest)
            if pixels is None:
                return []
            if one.example:
                row, shard, entry = one.example
                if not np.array_equal(pixels[row], preprocess.decode(shard.read_image(entry), max_pixels)):
                    raise ValueError(f"row {row} is not what the image file gives")
        except ValueError as error:
            log.warning("%s: not used (%s); images are decoded instead", directory / one.name, error)
            return []
        opened.append(pixels)
    return opened


def _open_file(directory: Path, name: str, shape: tuple[int, ...], manifest: Mapping[str, Any]) -> np.ndarray | None:
    """Open the pixels of a shard; None where they are not there, or another process replaces the folder just now.

    Raises:
        ValueError: The file is not what its name says.
    """
    try:
        with open(directory / name, "rb") as file:
            problem = artifacts.file_problem(directory, name, manifest)
            if problem:
                raise ValueError(problem)
            return _map(file, shape)
    except FileNotFoundError:
        return None


def _map(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Map the pixels of an open .npy file; the map stays when the file is closed, so that shards may be many.

    numpy's own map would keep a file descriptor, of which a process has 1,024 by default.

    Raises:
        ValueError: The file is no .npy file of uint8 in this shape.
    """
    np.lib.format.read_magic(file)
    found, _, dtype = np.lib.format.read_array_header_1_0(file)
    if (found, dtype) != (shape, np.uint8):
        raise ValueError(f"{dtype} {found}, expected uint8 {shape}")
    start = file.tell()
    whole = torch.from_file(f"/dev/fd/{file.fileno()}", size=start + math.prod(shape), dtype=torch.uint8)
    pixels = whole[start:].numpy().reshape(shape)
    pixels.setflags(write=False)
    return pixels


# --- their place ------------------------------------------------------------------------------------------------


def fits(settings: CacheTeacherSettings, num_images: int, image_size: tuple[int, int], at: Path) -> bool:
    """Decide whether the pixels are stored: `always`, `never`, or (auto) within max_gb and half of the free disk.

    Raises:
        UserError: `always`, but the disk has no room.
    """
    needed = num_images * 3 * image_size[0] * image_size[1]
    free = shutil.disk_usage(at).free
    log.info("pixel cache: %.2f GB needed, %.0f GB free", needed / 1e9, free / 1e9)
    if settings.pixels == "always" and needed > free:
        raise UserError(f"cache_teacher.pixels: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; use `auto`")
    small = needed <= settings.max_gb * 1e9 and needed <= free / 2
    return settings.pixels == "always" or (settings.pixels == "auto" and small)


def publish(folder: Path, known: Mapping[str, str], identity: Mapping[str, Any], paths: Paths) -> None:
    """Put `folder` with files of these hashes where readers look for pixels of this `identity`, be it another disk."""
    artifacts.write_manifest(folder, "cache_teacher", known=known, **identity)
    target = pixels_directory(paths)
    home = work_folders.work_directory("pixels", artifacts.digest([identity, known]), target)
    if home.parent.resolve() != folder.parent.parent.resolve():  # built for another target: no rename goes there
        work_folders.check_room(home, work_folders.bytes_in(folder) - work_folders.bytes_in(home))
        folder = Path(shutil.copytree(folder, home / folder.name, dirs_exist_ok=True))
    artifacts.publish(folder, target)
    shutil.rmtree(home, ignore_errors=True)
