"""Make the units of a group: decoded chunks and token ids in, features and digests out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from pipeline_lib.cache_teacher import check
from pipeline_lib.cache_teacher.chunks import Chunk, store_pixels
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.tokens import TextCuts, read_token_ids
from pipeline_lib.cache_teacher.unit import Content, Group, identity_digests
from pipeline_lib.core import shards
from pipeline_lib.model import Clip, JoinedClip
from pipeline_lib.model.embed import embed_images, embed_texts, embed_texts_by_length

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def write_group(
    group: Group, chunks: Iterable[Chunk], student: Clip, teacher: Clip, cuts: TextCuts, settings: CacheTeacherSettings
) -> None:
    """Write the units of a group, with their pixels if they are stored, from its chunks and token ids.

    Raises:
        UserError: The teacher's features, or those of a language model, mean nothing.
    """
    entries = [unit.read_entries() for unit in group]
    pixels = [unit.pixels_path(own) for unit, own in zip(group, entries, strict=True) if unit.stores_pixels]
    if pixels:
        chunks = store_pixels(pixels, group, chunks)
    images, faults = list[torch.Tensor](), list[str]()
    for chunk in chunks:
        faults += chunk.faults
        if settings.mode == "cached":
            images.append(embed_images(teacher, chunk.teacher_pixels, settings.chunk_size))
    token_ids = [read_token_ids(unit, cuts) for unit in group]
    features = dict[str, Sequence[torch.Tensor]]()  # of each unit
    if settings.mode == "cached":
        texts = _embed_texts(teacher, torch.cat([ids for _, ids in token_ids]), settings)
        features["image_features"] = torch.cat(images).split([len(own) for own in entries])
        features["text_features"] = texts.split([len(ids) for ids, _ in token_ids])
    if isinstance(student, JoinedClip):
        texts = _embed_texts(student, torch.cat([ids for ids, _ in token_ids]), settings)
        features["language_features"] = texts.split([len(ids) for ids, _ in token_ids])
    remaining = iter(faults)
    for at, (unit, own) in enumerate(zip(group, entries, strict=True)):
        own_faults = list(itertools.islice(remaining, len(own)))
        content = _without_features(own, token_ids[at][0], own_faults)
        content |= {name: rows[at].to(_dtype(name, settings)) for name, rows in features.items()}
        if features:
            check.check_unit(content, unit.name)
        unit.save(content, own_faults, pixels[at] if pixels else None)


def _dtype(name: str, settings: CacheTeacherSettings) -> torch.dtype:
    return STORED_DTYPES[settings.language_dtype if name == "language_features" else settings.dtype]


def _embed_texts(clip: Clip, token_ids: torch.Tensor, settings: CacheTeacherSettings) -> torch.Tensor:
    if settings.text_cut == "chunk":
        return embed_texts_by_length(clip, token_ids, settings.chunk_size, multiple=1)
    return embed_texts(clip, token_ids, settings.chunk_size)


def _without_features(entries: Sequence[shards.IndexEntry], token_ids: torch.Tensor, faults: Sequence[str]) -> Content:
    counts = [0, *(len(entry.captions) for entry in entries)]
    return {
        "caption_offsets": torch.tensor(counts).cumsum(0),
        "token_ids": token_ids.to(torch.int32),
        "valid": torch.tensor([not fault for fault in faults], dtype=torch.uint8),
        **identity_digests(entries),
    }
