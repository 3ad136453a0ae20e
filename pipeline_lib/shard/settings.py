"""Section `shard` of params.yaml."""

from __future__ import annotations

from pipeline_lib.core.schema import AtLeastOne, Share, section


@section("shard")
class ShardSettings:
    """How samples are written to tars."""

    samples_per_shard: AtLeastOne
    """The number of samples in one tar; the last tar of a part may hold fewer."""

    max_image_bytes: AtLeastOne
    """Larger image files are quarantined: they are left out and named in `quarantine.jsonl`."""

    max_image_pixels: AtLeastOne
    """Images with more pixels (width x height) are quarantined, which keeps decompression bombs out."""

    max_caption_chars: AtLeastOne
    """Samples with a longer caption are quarantined, and choices with a longer text left out."""

    max_bad_share: Share
    """The stage fails if a larger share of a part's samples is quarantined, of the rows of a captions file left out, or
    of a set's choices for their texts.
    """

    max_overlap_share: Share
    """The stage fails if a larger share of a part's images is also in an earlier training part or in what the base was
    trained on. Up to this share they are left out of the part, so that no evaluated image was trained on.
    """
