"""Section `report` of params.yaml."""

from __future__ import annotations

from pipeline_lib.core.schema import Count, section


@section("report")
class ReportSettings:
    """What the page shows."""

    num_examples: Count
    """Number of images shown whose own caption gained most places, and of those whose own lost most. 0 shows none."""

    title: str
    """Title of the page. An empty one stands for the name of the first evaluated set."""
