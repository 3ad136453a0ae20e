"""Section `report` of params.yaml."""

from __future__ import annotations

from pipeline_lib.core.schema import Count, Share, section


@section("report")
class ReportSettings:
    """What the page shows, and what it refuses."""

    num_examples: Count
    """Number of images shown whose own caption gained most places, and of those whose own lost most. 0 shows none."""

    title: str
    """Title of the page. An empty one stands for the name of the first evaluated set."""

    near_duplicate_cosine: Share
    """The cosine of the teacher's features, less their mean, above which an evaluated image nearly repeats one that was
    trained on. Such images stay, counted on the page and named in `near_duplicates.jsonl` beside it.
    """

    max_near_duplicate_share: Share
    """The stage fails if a larger share of a set's images nearly repeats one that was trained on. At 1 it
    never does: whether pictures that look alike are duplicates depends on the set, so look at the pairs first.
    """
