"""Section `cache_teacher` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import Eights, NotNegative, Share, section


@section("cache_teacher")
class CacheTeacherSettings:
    """The frozen teacher's features, computed once."""

    mode: Literal["cached", "online"]
    """`cached` stores the teacher's features, so that `refine` never runs it. `online` stores none: `refine` runs the
    teacher on every batch. Both give the same loss, to the bit unless `text_cut` is `chunk`. `online` is slower.
    """

    teacher: str
    """The model that teaches: `base`, or the path of another open_clip folder."""

    precision: Literal["fp32", "tf32", "bf16"]
    """The arithmetic of the teacher's towers. `tf32` is for NVIDIA GPUs. `bf16` is autocast: the weights stay fp32."""

    dtype: Literal["float32", "float16"]
    """The type in which features are stored. `float16` halves the cache and changes the loss by less than a
    thousandth.
    """

    language_dtype: Literal["float32", "float16"]
    """The same for the features of a language model, where there is one (`paths.text`)."""

    chunk_size: Eights
    """Images or captions that a tower sees at once. It must be a multiple of 8: in passes of another size rounding
    depends on a row's place, and the cache would not be bitwise what `online` computes. Another value makes another
    cache.
    """

    text_cut: Literal["set", "chunk", "none"]
    """Where token ids are cut, if the text tower allows it. `set` cuts all of them at the longest caption of the whole
    set. `chunk` sorts the captions by length and cuts each pass at its own longest, which is faster and gives the same
    features to rounding, not to the bit. `none` keeps the model's whole context. The cut of `set` is rounded up to 16
    tokens.
    """

    pixels: Literal["auto", "always", "never"]
    """Whether the decoded images are stored beside the cache, so that no later stage decodes them. `auto` stores them
    where they need at most `max_gb` and half of the free disk. They change no result.
    """

    max_gb: NotNegative
    """The largest pixel cache that `auto` stores, in 10⁹ bytes. An image of 224 x 224 pixels takes 150 kB."""

    max_bad_share: Share
    """The share of images that may fail to decode. The stage fails above it; below it they are listed in the manifest
    and left out.
    """

    verify_share: Share
    """The share of the samples that is computed again at the end and compared with the cache. At least 16 and
    at most 2,048 samples are, as far as there are so many.
    """

    verify_tolerance: NotNegative | None
    """The largest relative difference of a recomputed feature that is accepted. The loss may differ by a tenth of it,
    the gradient by ten times it. `null` stands for 1e-4, or for 2e-2 where `precision` or `dtype` is not 32 bit.
    """
