"""Section `report` of params.yaml."""

from __future__ import annotations

from pipeline_lib.core.schema import Count, section


@section("report")
class ReportSettings:
    """What the page shows."""

    num_examples: Count
    """Pictures whose rank improved most, and as many whose rank worsened most; 0: none."""

    title: str
    """Of the page; empty: the name of the first evaluated set."""
