"""The change of zero-shot accuracy on a set and on its shifts: the same classes in images of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.paired import Paired, item_differences
from pipeline_lib.results.statistics import Interval


@dataclass(frozen=True)
class Shifts:
    """Zero-shot top-1 of one task on a set and on its shifts."""

    source: Paired
    shifts: Sequence[Paired]
    mean: Interval  # of the changes on the shifts, see `statistics.mean_over_sets`


def compare_shifts(
    before: Variant, after: Variant, comparison: Sequence[Paired], shift_of: Mapping[str, str], settings: Certainty
) -> list[Shifts]:
    """Gather the zero-shot headlines of sets and their shifts, source by source, and the mean change over the shifts.

    Args:
        before: What it was.
        after: What is judged.
        comparison: The two compared, see `paired.compare_measures`.
        shift_of: Source by the name of its shift.
        settings: Confidence, bootstrap samples, seed.
    """
    headlines = [row for row in comparison if row.before.is_headline and row.before.kind == "zero_shot"]
    found = []
    for source in headlines:
        shifts = [
            row
            for row in headlines
            if shift_of.get(row.before.set_name) == source.before.set_name and row.before.key == source.before.key
        ]
        if shifts:
            mean = statistics.mean_over_sets(
                [item_differences(before, after, row.before) for row in shifts],
                [before.evaluation.all_sets[row.before.set_name]["num_images"] for row in shifts],
                num_samples=settings.bootstrap_samples,
                confidence=settings.confidence,
                seed=settings.seed,
            )
            found.append(Shifts(source, shifts, mean))
    return found
