"""Two models on the same items: the difference of every measure with its interval, and whether it is measurable.

Measures are means over items, so that two models are compared on the same items. Captions stay with their image, and an
image with its copies, in the bootstrap and in the exact test of sign flips. Holm's correction covers all headlines of
one comparison. Linear probes are no headlines: they are a family of their own. What takes no test gets an interval.

A difference that the test finds is not yet good news. It counts as risen only where the number is above what no model
at all gives, and only where the measure that must agree (`Measure.agrees_with`) rose with it: `objection` says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline_lib.core.errors import UserError
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Interval, Mean

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
    objection: str = ""  # why a change that the test finds does not count, see `objection`


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


def compare_few_shot(before: Variant, after: Variant, settings: Certainty, *, sets: Sequence[str]) -> list[Paired]:
    """Compare every point of the few-shot curves that both have; none takes a test."""
    return _compare(before, after, settings, sets, Variant.few_shot)


def _compare(before: Variant, after: Variant, settings: Certainty, sets: Sequence[str], chosen: Chosen) -> list[Paired]:
    return judged([row for name in sets for row in _compare_on(before, after, settings, name, chosen)], settings)


def _compare_on(before: Variant, after: Variant, settings: Certainty, set_name: str, chosen: Chosen) -> list[Paired]:
    others = {measure.key: measure for measure in chosen(after, set_name)}
    both = [measure for measure in chosen(before, set_name) if measure.items and measure.key in others]
    found = [(measure, others[measure.key], item_differences(before, after, measure)) for measure in both]
    return unjudged(found, before.evaluation.all_sets[set_name]["num_images"], settings)


def unjudged(found: Sequence[tuple[Measure, Measure, Mean]], num_images: int, settings: Certainty) -> list[Paired]:
    """Return (before, after, item-wise difference) of one set's measures with intervals, and p-values where tested."""
    found_intervals = statistics.intervals(
        {measure.key: difference for measure, _, difference in found},
        num_images,
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    return [
        Paired(
            measure,
            after,
            found_intervals[measure.key],
            statistics.sign_flips_by_image(difference) if measure.is_tested else None,
        )
        for measure, after, difference in found
    ]


def judged(rows: Sequence[Paired], settings: Certainty) -> list[Paired]:
    """Return the rows with verdicts: Holm's correction over all that are tested, then the objections."""
    adjusted = iter(statistics.holm([row.p_value for row in rows if row.p_value is not None]))
    by_name = {(row.before.set_name, row.before.key): row for row in rows}
    alpha = 1 - settings.confidence
    return [row if row.p_value is None else _judge(row, next(adjusted), alpha, by_name) for row in rows]


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


def _judge(row: Paired, adjusted_p: float, alpha: float, rows: Mapping[tuple[str, str], Paired]) -> Paired:
    others = {key: (one.before, one.difference) for (name, key), one in rows.items() if name == row.before.set_name}
    verdict, against = conclude(judge(row.difference, adjusted_p, alpha), row.before, row.after, others)
    return replace(row, adjusted_p=adjusted_p, verdict=verdict, objection=against)


def judge(difference: Interval, adjusted_p: float, alpha: float) -> Verdict:
    """Return whether a test finds that a number rose or fell at the level `alpha`; still: it does not."""
    if adjusted_p >= alpha:
        return "still"
    return "rose" if difference.value > 0 else "fell"


def conclude(
    verdict: Verdict, before: Measure, after: Measure, others: Mapping[str, tuple[Measure, Interval]]
) -> tuple[Verdict, str]:
    """Return what the test found if nothing speaks against it, else `still` and what does; see `objection`."""
    against = objection(verdict, before, after, others)
    return ("still" if against else verdict), against


def objection(verdict: Verdict, before: Measure, after: Measure, others: Mapping[str, tuple[Measure, Interval]]) -> str:
    """Say why a change that the test finds does not count, as the end of a sentence; empty where it does.

    Args:
        verdict: What the test says.
        before: What it was.
        after: What is judged.
        others: The differences of the set's measures by key; those that must agree with this one are among them.
    """
    if verdict == "still":
        return ""
    higher = after if verdict == "rose" else before
    if 0 < higher.floor >= higher.interval.low:
        return f"it {'is' if verdict == 'rose' else 'was'} not measurably above what {_no_model(higher)} gives"
    if verdict == "rose" and before.agrees_with in others:
        measure, difference = others[before.agrees_with]
        if difference.low <= 0:
            return f"{measure.label} did not rise measurably with it"
    for measure, difference in (others[key] for key in (before.agrees_with, before.not_against) if key in others):
        if difference.high < 0 if verdict == "rose" else difference.low > 0:
            return f"{measure.label} {'fell' if verdict == 'rose' else 'rose'}"
    return ""


def _no_model(measure: Measure) -> str:
    return "always answering the commonest class" if measure.floor == measure.commonest else "chance"
