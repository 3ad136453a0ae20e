"""Section `shard` of params.yaml."""

from __future__ import annotations

from pipeline_lib.core.schema import AtLeastOne, Share, section


@section("shard")
class ShardSettings:
    """How samples are written to tars."""

    samples_per_shard: AtLeastOne
    """Samples in one tar, the last one of a part excepted."""

    max_image_bytes: AtLeastOne
    """Larger image files are quarantined: left out, and named in a list."""

    max_image_pixels: AtLeastOne
    """Larger images are quarantined (decompression bombs)."""

    max_caption_chars: AtLeastOne
    """Longer captions are quarantined with their image."""

    max_bad_share: Share
    """Share of quarantined samples in a part above which the stage fails."""

    max_overlap_share: Share
    """Share of evaluation images found in a training part above which the stage fails."""
