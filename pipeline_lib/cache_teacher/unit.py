"""A unit: what the cache holds of one shard. Its content, its files while it is made, and whether they are whole.

Neighbouring units are made together, as a group, so that small shards do not leave the teacher's passes half empty.

In safetensors (read through mmap), for N samples with M captions, feature width D and L tokens: `image_features`
[N, D], `text_features` [M, D], where a language model reads captions `language_features` [M, W],
`caption_offsets` [N + 1], `token_ids` [M, L], `valid` [N], `key_digests` [N, 16],
`caption_digests` [M, 16]. An image that does not decode keeps its row with `valid` = 0. A teacher that runs online has
units without features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline_lib.cache_teacher.pixels import pixels_identity, pixels_name
from pipeline_lib.core import artifacts, shards
from pipeline_lib.model import Preprocess

Content = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Unit:
    """A unit while it is made in the folder `work`, from shard number `index` of a part.

        teacher/<part>/<index>.safetensors   what becomes part of the cache
        pixels/<digest>.npy                  what becomes part of data/pixels, if pixels are stored
        tokens/<part>/<index>.safetensors    the whole token ids of its captions, before they are cut
        done/<part>/<index>.json             the hashes of the first two, written last

    It is whole or absent: each file is written under a temporary name and renamed, the record last.
    """

    part: shards.Part
    index: int
    work: Path
    preprocess: Preprocess  # the student's: the pixels are its
    stores_pixels: bool

    @property
    def name(self) -> str:
        """Part and number, as in its paths."""
        return f"{self.part.name}/{self.index:05d}"

    @property
    def shard(self) -> shards.Shard:
        """What it is made from."""
        return self.part.shards[self.index]

    @property
    def content_path(self) -> Path:
        """Of the file that becomes part of the cache."""
        return self.work / "teacher" / f"{self.name}.safetensors"

    @property
    def tokens_path(self) -> Path:
        """Of the whole token ids."""
        return self.work / "tokens" / f"{self.name}.safetensors"

    @property
    def record_path(self) -> Path:
        """Of the record that says that the unit is whole."""
        return self.work / "done" / f"{self.name}.json"

    def pixels_path(self, entries: Sequence[shards.IndexEntry]) -> Path:
        """Return the path of the pixels; `entries` are those of the shard."""
        return self.work / "pixels" / pixels_name(pixels_identity(self.preprocess, self.part), entries)

    def read_entries(self) -> list[shards.IndexEntry]:
        """Read the shard's index. It is not kept: all indices together would fill the memory."""
        return list(shards.read_index(self.shard.index_path))

    def read_record(self) -> dict[str, Any]:
        """Read what `save` recorded."""
        return artifacts.read_json(self.record_path)

    def is_finished(self) -> bool:
        """Return whether an earlier, interrupted run made it whole: its files have the recorded hashes."""
        if not self.record_path.is_file():
            return False
        record = self.read_record()
        if self.stores_pixels and not record["pixels"]:
            return False
        files = {self.content_path: record["sha256"]}
        if self.stores_pixels:
            files |= {self.work / "pixels" / name: sha256 for name, sha256 in record["pixels"].items()}
        return all(path.is_file() and artifacts.sha256_file(path) == sha256 for path, sha256 in files.items())

    def save(self, content: Content, faults: Sequence[str], pixels: Path | None) -> None:
        """Write the content and then the record.

        Args:
            content: Tensors by name.
            faults: Of each image why it does not decode; "": it does.
            pixels: The file of the pixels, whole already; None: they are not stored.
        """
        data = safetensors.torch.save(content)
        artifacts.write_bytes(self.content_path, data)
        record = {
            "shard": self.shard.sha256,
            "sha256": artifacts.sha256_bytes(data),
            "num_samples": len(content["valid"]),
            "num_captions": len(content["token_ids"]),
            "invalid": [fault for fault in faults if fault],
            "pixels": {pixels.name: artifacts.sha256_file(pixels)} if pixels else {},
        }
        artifacts.write_json(self.record_path, record)


Group = Sequence[Unit]  # neighbouring units of one part, embedded together


def count_images(group: Group) -> int:
    """Count the images of a group, those that do not decode as well."""
    return sum(unit.shard.num_samples for unit in group)


def group_units(units: Iterable[Unit], num_images: int) -> list[Group]:
    """Divide the units of a part, in their order, into groups of at least `num_images`; the last may have fewer.

    A teacher's passes run across the units of a group and never beyond: what a pass holds, and so every bit of the
    cache, depends on the shards alone, not on where an earlier run stopped or how many processes there are.
    """
    groups: list[list[Unit]] = []
    for unit in units:
        if not groups or count_images(groups[-1]) >= num_images:
            groups.append([])
        groups[-1].append(unit)
    return list(groups)


def identity_digests(entries: Sequence[shards.IndexEntry]) -> Content:
    """Return what tells one row from another: `key_digests` [N, 16] and `caption_digests` [M, 16], uint8."""
    captions = [caption for entry in entries for caption in entry.captions]
    return {
        "key_digests": _digest_rows([entry.key for entry in entries]),
        "caption_digests": _digest_rows(captions),
    }


def _digest_rows(texts: Sequence[str]) -> torch.Tensor:
    joined = b"".join(shards.text_digest(text) for text in texts)
    return torch.from_numpy(np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16).copy())
