"""Make one unit: decoded chunks and token ids in, features and digests out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pipeline_lib.cache_teacher import check
from pipeline_lib.cache_teacher.chunks import Chunk, store_pixels
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.tokens import TextCuts, read_token_ids
from pipeline_lib.cache_teacher.unit import Content, Unit, identity_digests
from pipeline_lib.core import shards
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import embed_images, embed_texts, embed_texts_by_length

STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def write_unit(
    unit: Unit, chunks: Iterable[Chunk], teacher: Clip, cuts: TextCuts, settings: CacheTeacherSettings
) -> None:
    """Write a unit, with its pixels if they are stored, from the chunks of its images and its token ids.

    Raises:
        UserError: The teacher's features mean nothing.
    """
    entries = unit.read_entries()
    pixels = unit.pixels_path(entries) if unit.stores_pixels else None
    if pixels:
        chunks = store_pixels(pixels, unit, chunks)
    features, faults = [], dict[int, str]()
    for chunk in chunks:
        faults |= chunk.faults
        if settings.mode == "cached":
            features.append(embed_images(teacher, chunk.teacher_pixels, settings.chunk_size))
    student_ids, teacher_ids = read_token_ids(unit, cuts)
    content = _without_features(entries, student_ids, faults)
    if settings.mode == "cached":
        content["image_features"] = torch.cat(features)
        if settings.text_cut == "chunk":
            content["text_features"] = embed_texts_by_length(teacher, teacher_ids, settings.chunk_size, multiple=1)
        else:
            content["text_features"] = embed_texts(teacher, teacher_ids, settings.chunk_size)
        check.check_unit(content, unit.name)
        for name in ("image_features", "text_features"):
            content[name] = content[name].to(STORED_DTYPES[settings.dtype])
    unit.save(content, faults, pixels)


def _without_features(entries: Sequence[shards.IndexEntry], token_ids: torch.Tensor, faults: dict[int, str]) -> Content:
    counts = [0, *(len(entry.captions) for entry in entries)]
    return {
        "caption_offsets": torch.tensor(counts).cumsum(0),
        "token_ids": token_ids.to(torch.int32),
        "valid": torch.tensor([row not in faults for row in range(len(entries))], dtype=torch.uint8),
        **identity_digests(entries),
    }
