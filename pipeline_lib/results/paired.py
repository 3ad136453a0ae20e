"""Two models on the same items: the difference of every measure with its interval, and whether it is measurable.

Measures are means over items, so that two models are compared on the same items. Captions stay with their image in the
bootstrap and in the exact test of sign flips; accuracies take McNemar's test. Holm's correction covers all headlines of
one comparison. Linear probes are no headlines: they are a family of their own. What takes no test gets an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline_lib.core.errors import UserError
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Interval, Mean, PairedTest

Verdict = Literal["rose", "fell", "still"]
Chosen = Callable[[Variant, str], Iterable[Measure]]  # the measures of a set that are compared


@dataclass(frozen=True)
class Paired:
    """One measure before and after, on the same items. Values are shares, not percent."""

    before: Measure
    after: Measure
    difference: Interval
    p_value: float | None = None  # of measures that take a test
    adjusted_p: float | None = None
    verdict: Verdict = "still"


def compare_measures(before: Variant, after: Variant, settings: Certainty, *, sets: Sequence[str]) -> list[Paired]:
    """Compare every measure of `sets` whose items both have; Holm's correction is over all that take a test.

    Args:
        before: What it was.
        after: What is judged.
        settings: Confidence, bootstrap samples, seed.
        sets: Set names.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    return _compare(before, after, settings, sets, Variant.measures)


def compare_probes(before: Variant, after: Variant, settings: Certainty, *, sets: Sequence[str]) -> list[Paired]:
    """Compare every linear probe that both have, with Holm's correction over the probes alone."""
    return _compare(before, after, settings, sets, Variant.probes)


def _compare(before: Variant, after: Variant, settings: Certainty, sets: Sequence[str], chosen: Chosen) -> list[Paired]:
    rows = [row for name in sets for row in _compare_on(before, after, settings, name, chosen)]
    adjusted = iter(statistics.holm([row.p_value for row in rows if row.p_value is not None]))
    alpha = 1 - settings.confidence
    return [row if row.p_value is None else _judge(row, next(adjusted), alpha) for row in rows]


def _compare_on(before: Variant, after: Variant, settings: Certainty, set_name: str, chosen: Chosen) -> list[Paired]:
    others = {measure.key: measure for measure in chosen(after, set_name)}
    both = [measure for measure in chosen(before, set_name) if measure.items and measure.key in others]
    if not both:
        return []
    found = statistics.paired_tests(
        {measure.key: item_differences(before, after, measure) for measure in both},
        before.evaluation.all_sets[set_name]["num_images"],
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    rows = []
    for measure in both:
        test = found[measure.key]
        p = _p_value(before, after, measure, test)
        rows.append(Paired(measure, others[measure.key], Interval(test.difference, test.low, test.high), p))
    return rows


def item_differences(before: Variant, after: Variant, measure: Measure) -> Mean:
    """Return after minus before on every item behind a measure, each with the image it belongs to.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    first, second = before.mean(measure), after.mean(measure)
    if len(first.values) != len(second.values):
        raise UserError(
            f"{before.evaluation.directory} and {after.evaluation.directory}: set `{measure.set_name}` has "
            f"{len(first.values)} and {len(second.values)} items; evaluate both on the same data (dvc repro)"
        )
    return first._replace(values=second.values - first.values)


def _p_value(before: Variant, after: Variant, measure: Measure, flips: PairedTest) -> float | None:
    if measure.test == "mcnemar":
        return statistics.mcnemar(*(one.array(measure.set_name, measure.correct) for one in (before, after)))
    return flips.p_value if measure.test == "sign_flips" else None


def _judge(row: Paired, adjusted_p: float, alpha: float) -> Paired:
    return replace(row, adjusted_p=adjusted_p, verdict=judge(row.difference, adjusted_p, alpha))


def judge(difference: Interval, adjusted_p: float, alpha: float) -> Verdict:
    """Return whether a number rose, fell or stands still, as far as one can tell at the level `alpha`."""
    if adjusted_p >= alpha:
        return "still"
    return "rose" if difference.value > 0 else "fell"
