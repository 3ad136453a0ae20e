"""The teacher cache for readers: random access to its features, joined to the shards by identity.

Why it is exact: the teacher is frozen and there is no augmentation, so an image or caption has one feature vector. Raw
fp32 features of every image and of every caption are kept (a step draws which caption it shows), with the token ids: a
file a shard, see `unit`. Rows are found by shard and place, and compared by shard hash, key and caption digests: never
by number alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline_lib.cache_teacher.fingerprint import differences
from pipeline_lib.cache_teacher.pixels import ShardPixels, open_pixels, pixels_directory, pixels_identity, pixels_name
from pipeline_lib.cache_teacher.unit import Content, identity_digests
from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.model import Clip
from pipeline_lib.model.features import Inputs

Rows = Sequence[int] | np.ndarray


class CachedPart:
    """Random access to one part of the cache through mmap, its identity checked against the shards at opening."""

    def __init__(self, teacher_directory: Path, pixels: Path | None, part: shards.Part, student: Clip) -> None:
        """Open the part and compare it with the shards; see `open_parts`."""
        manifest = artifacts.read_manifest(teacher_directory, stage="cache_teacher")
        facts = manifest["parts"].get(part.name)
        if facts is None:
            raise UserError(f"{teacher_directory}: has no part `{part.name}`; run `dvc repro cache_teacher`")
        self.part = part
        self.preprocess = student.preprocess
        self.text_length: int = manifest["text_length"]
        self.teacher_text_length: int = manifest["teacher_text_length"]
        self.units: list[Content] = []
        stored, identity = list[ShardPixels](), pixels_identity(student.preprocess, part)
        for index, (shard, record) in enumerate(zip(part.shards, facts["units"], strict=True)):
            name = f"{part.name}/{index:05d}.safetensors"
            artifacts.check_file(teacher_directory, name, manifest)
            path = teacher_directory / name
            unit, entries = safetensors.torch.load_file(path), list(shards.read_index(shard.index_path))
            _check_identity(path, unit, record, shard, entries)
            self.units.append(unit)
            stored.append(ShardPixels(pixels_name(identity, entries), len(entries), _middle(unit, shard, entries)))
        self.starts = np.cumsum([0, *(len(unit["valid"]) for unit in self.units)])
        valid = [np.zeros(0, np.uint8), *(unit["valid"].numpy() for unit in self.units)]
        self.valid_rows = np.flatnonzero(np.concatenate(valid))
        keys = [np.zeros((0, 16), np.uint8), *(unit["key_digests"].numpy() for unit in self.units)]
        self.key_digests = np.concatenate(keys)
        counts = [np.zeros(0, np.int64), *(unit["caption_offsets"].diff().numpy() for unit in self.units)]
        self.num_captions = np.concatenate(counts)
        self.pixels = open_pixels(pixels, stored, student.preprocess, part.max_image_pixels) if pixels else []
        self.reads_pixels = True  # False: of a locked image tower the features are read, which never change

    def __len__(self) -> int:
        """Count the samples, valid or not."""
        return int(self.starts[-1])

    def _locate(self, rows: Rows) -> list[tuple[int, int]]:
        """Return (shard, row in the shard) of each row of the part."""
        place = np.searchsorted(self.starts, rows, side="right") - 1
        return [(int(p), int(row - self.starts[p])) for p, row in zip(place, rows, strict=True)]

    def _pick(self, name: str, rows: Rows, captions: Rows) -> torch.Tensor:
        """Stack rows from the units: of each sample (images), or of its caption number `captions[i]` (texts)."""
        picked = []
        for (place, row), caption in zip(self._locate(rows), captions, strict=True):
            unit = self.units[place]
            at = row if name == "image_features" else int(unit["caption_offsets"][row]) + caption
            picked.append(unit[name][at])
        return torch.stack(picked)

    def read_inputs(self, rows: Rows, captions: Rows, *, pixels: bool = False) -> Inputs:
        """Return what the student reads of samples `rows`, of sample i its caption number `captions[i]`.

        Pixels (with `pixels` in any case) or, see `reads_pixels`, features of images; token ids or, where a language
        model reads captions, its features.
        """
        if pixels or self.reads_pixels:
            images = torch.from_numpy(np.stack([self._image(place, row) for place, row in self._locate(rows)]))
        else:
            images = self._pick("image_features", rows, captions).float()
        if "language_features" in self.units[0]:
            return Inputs(images, self._pick("language_features", rows, captions).float())
        return Inputs(images, self._pick("token_ids", rows, captions).long())

    def read_features(self, rows: Rows, captions: Rows) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the teacher's raw image and text features, fp32 [b, D'] each; None where the teacher runs online.

        Sample i is read with its caption number `captions[i]`.
        """
        if "image_features" not in self.units[0]:
            return None
        image_features = self._pick("image_features", rows, captions)
        return image_features.float(), self._pick("text_features", rows, captions).float()

    def entries(self, rows: Rows) -> Iterator[tuple[shards.Shard, shards.IndexEntry]]:
        """Yield the shard and the index entry of each row, in increasing order one index in memory at a time."""
        for place, of_shard in itertools.groupby(self._locate(rows), key=lambda located: located[0]):
            shard = self.part.shards[place]
            entries = list(shards.read_index(shard.index_path))
            yield from ((shard, entries[row]) for _, row in of_shard)

    def entry(self, row: int) -> tuple[shards.Shard, shards.IndexEntry]:
        """Return the shard and the index entry of a row."""
        return next(self.entries([row]))

    def _decode(self, shard: shards.Shard, entry: shards.IndexEntry) -> np.ndarray:
        return self.preprocess.decode(shard.read_image(entry), self.part.max_image_pixels)

    def _image(self, place: int, row: int) -> np.ndarray:
        if self.pixels:
            return self.pixels[place][row]
        shard = self.part.shards[place]
        return self._decode(shard, shard.samples()[row])


def _middle(
    unit: Content, shard: shards.Shard, entries: Sequence[shards.IndexEntry]
) -> tuple[int, shards.Shard, shards.IndexEntry] | None:
    """Return the middle one of the rows that decode, with its image; None where none does."""
    rows = unit["valid"].nonzero()[:, 0].tolist()
    return (row := rows[len(rows) // 2], shard, entries[row]) if rows else None


def _check_identity(
    path: Path,
    unit: Content,
    record: dict[str, Any],
    shard: shards.Shard,
    entries: Sequence[shards.IndexEntry],
) -> None:
    """Refuse a unit whose shard hash, keys or captions are not those of the shard as it stands.

    Raises:
        UserError: They are not.
    """
    if record["shard"] != shard.sha256:
        raise UserError(f"{path}: made from another shard ({record['shard'][:12]}, now {shard.sha256[:12]}); dvc repro")
    for name, digests in identity_digests(entries).items():
        if not torch.equal(unit[name], digests):
            raise UserError(f"{path}: {name} differ from {shard.index_path}; run `dvc repro -f cache_teacher`")


def open_parts(paths: Paths, student: Clip, *, pixels: bool = True) -> dict[str, CachedPart]:
    """Open the parts of the cache for reading, with the stored pixels if they are there and `pixels` says so.

    Raises:
        UserError: Missing, unfinished, or made from other shards, keys or captions.
    """
    stored = pixels_directory(paths) if pixels else None
    parts = shards.read_training_parts(paths.shards)
    return {part.name: CachedPart(paths.teacher, stored, part, student) for part in parts}


def check_fingerprint(manifest: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Refuse a cache made by another teacher, from other shards or with other settings, saying what differs.

    Raises:
        UserError: The fingerprints differ.
    """
    lines = differences(manifest["fingerprint"], expected)
    if lines:
        raise UserError(f"{path}: not the cache for this configuration ({'; '.join(lines)}); run `dvc repro`")
