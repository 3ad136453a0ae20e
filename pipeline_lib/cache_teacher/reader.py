"""The frozen teacher's features, computed once and joined by identity: format, embedding, reader.

Why it is exact: the teacher is frozen and there is no augmentation, so an image or caption has one feature vector. Raw
fp32 features of every image and of every caption are kept (a step draws which caption it shows), with the token ids.

One unit per shard, in safetensors (read through mmap): for N samples with M captions, feature width D and L tokens
`image_features` [N, D], `text_features` [M, D], `caption_offsets` [N + 1], `token_ids` [M, L], `valid` [N],
`key_digests` [N, 16], `caption_digests` [M, 16].
Rows are found by shard and place, and compared by shard hash, key and caption digests: never by number alone.
An undecodable image keeps its row with `valid` = 0.

Where they fit, the uint8 pixels that the model's PIL steps give lie beside the cache, `.npy` [N, 3, H, W] a shard, so
that no later stage decodes an image. They are what decoding the shards gives, so they decide nothing, are no output
of the pipeline and stay on their machine. A file's name is a digest of all that its content depends on: whoever finds
it may use it, while others write or remove files; whoever does not find it decodes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, provenance, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.model import Clip, Preprocess
from pipeline_lib.model.features import Inputs

log = logging.getLogger(__name__)
Rows = Sequence[int] | np.ndarray
CUT_MULTIPLE = 16  # a cut is rounded up to this many tokens
DECODERS = ("pillow", "torchvision", "open_clip_torch")  # packages that turn an image file into pixels


# --- embedding: the one function that cached and online teachers share -------------------------------------------


def embed_images(clip: Clip, images: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> raw features, fp32 [n, D] on the CPU, in passes of exactly `chunk_size` rows."""
    return _embed(clip, clip.encode_image, images, chunk_size)


def embed_texts(clip: Clip, token_ids: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Token ids [n, L] -> raw features, fp32 [n, D] on the CPU, in passes of exactly `chunk_size` rows."""
    return _embed(clip, clip.encode_text, token_ids, chunk_size)


def embed_texts_by_length(clip: Clip, token_ids: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """As `embed_texts`, to rounding: rows sorted by length, and each pass cut at its own longest caption."""
    lengths = clip.text_lengths(token_ids)
    features = torch.empty(len(token_ids), clip.embed_dim)
    for rows in lengths.argsort(stable=True).split(chunk_size):
        length = cut_length(lengths[rows], token_ids.shape[1])
        features[rows] = embed_texts(clip, token_ids[rows, :length], chunk_size)
    return features


def cut_length(lengths: torch.Tensor, context_length: int) -> int:
    """Tokens that captions of these lengths need, rounded up so that shapes (and kernels) are few."""
    longest = int(lengths.max()) if len(lengths) else 1
    return min(context_length, -(-longest // CUT_MULTIPLE) * CUT_MULTIPLE)


def _embed(clip: Clip, encode: Any, rows: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """The last pass is filled up with copies of its first row: a pass of another size rounds differently."""
    features = [torch.empty(0, clip.embed_dim)]
    with torch.inference_mode():
        for chunk in rows.split(chunk_size) if len(rows) else ():
            missing = chunk_size - len(chunk)
            full = torch.cat([chunk, chunk[:1].expand(missing, *chunk.shape[1:])]) if missing else chunk
            features.append(encode(full.to(clip.device))[: len(chunk)].float().cpu())
    return torch.cat(features)


# --- fingerprint ------------------------------------------------------------------------------------------------


def fingerprint(student: Clip, teacher: Clip, settings: CacheTeacherSettings, shards_digest: str) -> dict[str, Any]:
    """Everything on which a cached number depends, as JSON values; readers refuse a cache whose fingerprint differs."""

    def facts(clip: Clip) -> dict[str, Any]:
        return {k: clip.facts[k] for k in ("config_digest", "preprocess", "tokenizer_digest", "quick_gelu")}

    return {
        "shards": shards_digest,
        "teacher": {**facts(teacher), "weights_digest": teacher.facts["weights_digest"]},
        "student_input": {k: student.facts[k] for k in ("preprocess", "tokenizer_digest")},
        "mode": settings.mode,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "chunk_size": settings.chunk_size,
        "text_cut": settings.text_cut,
    }


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """What differs between two fingerprints, one line each."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        return [line for k in keys for line in differences(found.get(k), expected.get(k), f"{path}.{k}".strip("."))]
    return [] if found == expected else [f"{path}: cache has {found!r}, now {expected!r}"]


# --- pixels -----------------------------------------------------------------------------------------------------


def pixels_directory(paths: Paths) -> Path:
    """Where this machine keeps pixels: one folder for the project and all experiments in DVC's temporary folders."""
    return Path(os.environ.get("DVC_ROOT", ""), paths.pixels)


def pixels_identity(preprocess: Preprocess, part: shards.Part) -> dict[str, Any]:
    """What pixels depend on beside the image files."""
    return {
        "preprocess": dict(preprocess.config),
        "max_image_pixels": part.max_image_pixels,
        "packages": _decoder_versions(),
    }


def pixels_name(identity: dict[str, Any], entries: Sequence[shards.IndexEntry]) -> str:
    """Name of the file with the pixels of a shard that holds `entries`."""
    return f"{artifacts.digest([identity, [entry.sha256 for entry in entries]])[:32]}.npy"


@cache
def _decoder_versions() -> dict[str, str]:
    versions = provenance.package_versions()
    return {name: versions[name] for name in DECODERS}


class _StoredPixels(NamedTuple):
    """What the file with the pixels of a shard must be."""

    name: str
    num_images: int
    example: tuple[int, shards.Shard, shards.IndexEntry] | None  # row and image to compare; None: no image decodes


def _middle(valid: torch.Tensor) -> int | None:
    """The middle one of the rows that decode."""
    rows = valid.nonzero()[:, 0].tolist()
    return rows[len(rows) // 2] if rows else None


def _open_pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels of a shard; None where they are not there, or another process replaces the folder just now.

    Raises:
        ValueError: The file is not what its name says.
    """
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except EOFError:
        raise ValueError("empty") from None
    if (pixels.shape, pixels.dtype) != (shape, np.uint8):
        raise ValueError(f"{pixels.dtype} {pixels.shape}, expected uint8 {shape}")
    return pixels


# --- reader -----------------------------------------------------------------------------------------------------


class CachedPart:
    """Random access to one part of the cache through mmap, its identity checked against the shards at opening."""

    def __init__(self, teacher_directory: Path, pixels: Path | None, part: shards.Part, student: Clip) -> None:
        """Open and compare with the shards; see `open_parts`."""
        manifest = artifacts.read_manifest(teacher_directory, stage="cache_teacher")
        facts = manifest["parts"].get(part.name)
        if facts is None:
            raise UserError(f"{teacher_directory}: has no part `{part.name}`; run `dvc repro cache_teacher`")
        self.part = part
        self.preprocess = student.preprocess
        self.text_length: int = manifest["text_length"]
        self.teacher_text_length: int = manifest["teacher_text_length"]
        self.units: list[dict[str, torch.Tensor]] = []
        identity, stored = pixels_identity(student.preprocess, part), list[_StoredPixels]()
        for index, (shard, record) in enumerate(zip(part.shards, facts["units"], strict=True)):
            path = teacher_directory / part.name / f"{index:05d}.safetensors"
            unit = safetensors.torch.load_file(path)
            entries = list(shards.read_index(shard.index_path))
            _check_identity(path, unit, record, shard, entries)
            self.units.append(unit)
            row = _middle(unit["valid"])
            example = (row, shard, entries[row]) if row is not None else None
            stored.append(_StoredPixels(pixels_name(identity, entries), len(entries), example))
        self.starts = np.cumsum([0, *(len(unit["valid"]) for unit in self.units)])
        valid = np.concatenate([unit["valid"].numpy() for unit in self.units] or [np.zeros(0, np.uint8)])
        self.valid_rows = np.flatnonzero(valid)
        self.key_digests = np.concatenate(
            [u["key_digests"].numpy() for u in self.units] or [np.zeros((0, 16), np.uint8)]
        )
        self.num_captions = np.concatenate(
            [np.diff(unit["caption_offsets"].numpy()) for unit in self.units] or [np.zeros(0, np.int64)]
        )
        self.pixels: list[np.ndarray] = []
        if pixels:
            self.pixels = self._read_pixels(pixels, stored)

    def __len__(self) -> int:
        """Samples, valid or not."""
        return int(self.starts[-1])

    def _locate(self, rows: Rows) -> list[tuple[int, int]]:
        """(shard, row in the shard) of each row of the part."""
        place = np.searchsorted(self.starts, rows, side="right") - 1
        return [(int(p), int(row - self.starts[p])) for p, row in zip(place, rows, strict=True)]

    def _pick(self, name: str, rows: Rows, captions: Rows) -> torch.Tensor:
        """Row by row from the units: of each sample (images), or of its caption number `captions[i]` (texts)."""
        picked = []
        for (place, row), caption in zip(self._locate(rows), captions, strict=True):
            unit = self.units[place]
            at = row if name == "image_features" else int(unit["caption_offsets"][row]) + caption
            picked.append(unit[name][at])
        return torch.stack(picked)

    def read_inputs(self, rows: Rows, captions: Rows) -> Inputs:
        """Pixels and token ids of samples `rows`, sample i with its caption number `captions[i]`."""
        images = np.stack([self._image(place, row) for place, row in self._locate(rows)])
        return Inputs(torch.from_numpy(images), self._pick("token_ids", rows, captions).long())

    def read_features(self, rows: Rows, captions: Rows) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The teacher's raw image and text features, fp32 [b, D'] each; None where the teacher runs online."""
        if "image_features" not in self.units[0]:
            return None
        image_features = self._pick("image_features", rows, captions)
        return image_features.float(), self._pick("text_features", rows, captions).float()

    def entry(self, row: int) -> tuple[Any, Any]:
        """The shard and the index entry of a row."""
        [(place, local)] = self._locate([row])
        shard = self.part.shards[place]
        return shard, shard.samples()[local]

    def _read_pixels(self, directory: Path, stored: Sequence[_StoredPixels]) -> list[np.ndarray]:
        """The pixels of all shards, one picture of each compared with its image file; none where one is missing."""
        found = []
        for one in stored:
            try:
                pixels = _open_pixels(directory / one.name, (one.num_images, 3, *self.preprocess.image_size))
                if pixels is None:
                    return []
                if one.example:
                    row, shard, entry = one.example
                    if not np.array_equal(pixels[row], self._decode(shard, entry)):
                        raise ValueError(f"row {row} is not what the image file gives")
            except ValueError as error:
                log.warning("%s: not used (%s); images are decoded instead", directory / one.name, error)
                return []
            found.append(pixels)
        return found

    def _decode(self, shard: shards.Shard, entry: shards.IndexEntry) -> np.ndarray:
        return self.preprocess.decode(shard.read_image(entry), self.part.max_image_pixels)

    def _image(self, place: int, row: int) -> np.ndarray:
        if self.pixels:
            return self.pixels[place][row]
        shard = self.part.shards[place]
        return self._decode(shard, shard.samples()[row])


def digest_rows(values: list[bytes]) -> torch.Tensor:
    """16-byte digests as uint8 [n, 16]."""
    return torch.from_numpy(np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, 16).copy())


def _check_identity(
    path: Path,
    unit: dict[str, torch.Tensor],
    record: dict[str, Any],
    shard: shards.Shard,
    entries: Sequence[shards.IndexEntry],
) -> None:
    """Shard hash, every key and every caption must be those of the shard as it stands.

    Raises:
        UserError: They are not.
    """
    if record["shard"] != shard.sha256:
        raise UserError(f"{path}: made from another shard ({record['shard'][:12]}, now {shard.sha256[:12]}); dvc repro")
    expected = {
        "key_digests": [shards.text_digest(entry.key) for entry in entries],
        "caption_digests": [shards.text_digest(caption) for entry in entries for caption in entry.captions],
    }
    for name, digests in expected.items():
        if not torch.equal(unit[name], digest_rows(digests)):
            raise UserError(f"{path}: {name} differ from {shard.index_path}; run `dvc repro -f cache_teacher`")


def open_parts(paths: Paths, student: Clip, *, pixels: bool = True) -> dict[str, CachedPart]:
    """Open the parts of the cache for reading, with the stored pixels if they are there and `pixels` says so.

    Raises:
        UserError: Missing, unfinished, or made from other shards, keys or captions.
    """
    stored = pixels_directory(paths) if pixels else None
    parts = shards.read_training_parts(paths.shards)
    return {part.name: CachedPart(paths.teacher, stored, part, student) for part in parts}


def read_statistics(teacher_directory: Path) -> dict[str, torch.Tensor]:
    """`mean` and `std` [D] of the teacher's raw features and their mean norms; empty for a cache without features."""
    path = teacher_directory / "statistics.safetensors"
    return safetensors.torch.load_file(path) if path.is_file() else {}


def check_fingerprint(manifest: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Refuse a cache made by another teacher, from other shards or with other settings, saying what differs.

    Raises:
        UserError: The fingerprints differ.
    """
    lines = differences(manifest["fingerprint"], expected)
    if lines:
        raise UserError(f"{path}: not the cache for this configuration ({'; '.join(lines)}); run `dvc repro`")
