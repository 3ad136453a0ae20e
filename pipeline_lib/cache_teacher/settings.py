"""Section `cache_teacher` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import Eights, NotNegative, Share, section


@section("cache_teacher")
class CacheTeacherSettings:
    """The frozen teacher's features, computed once."""

    mode: Literal["cached", "online"]
    """Online: refine runs the teacher itself (the reference path)."""

    teacher: str
    """`base`, or the folder of another open_clip model."""

    precision: Literal["fp32", "tf32", "bf16"]
    """Of the teacher's towers; tf32 is for NVIDIA GPUs."""

    dtype: Literal["float32", "float16"]
    """Of the stored features."""

    chunk_size: Eights
    """Samples per forward pass, part of the fingerprint; a multiple of 8, since in passes of another size rounding
    depends on a row's place: the cache would not be bitwise what `online` computes.
    """

    text_cut: Literal["set", "chunk", "none"]
    """Cut token ids, where that is exact, at the longest caption (rounded up to 16) of the set, or of each pass over
    captions sorted by length (faster; equal to rounding, not to the bit).
    """

    pixels: Literal["auto", "always", "never"]
    """Store the uint8 pixels; auto: within max_gb and half of the free disk."""

    max_gb: NotNegative
    """Largest pixel cache of `auto`, in 10⁹ bytes."""

    max_bad_share: Share
    """Share of undecodable images above which the stage fails."""

    verify_share: Share
    """Share of the rows that is computed again at the end and compared (chunk_size to 2048 rows)."""

    verify_tolerance: NotNegative | None
    """Largest relative difference of features (loss: a tenth of it, its gradient: ten times); null: 1e-4, or 2e-2 where
    precision or dtype is not 32 bit.
    """
