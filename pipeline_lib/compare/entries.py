"""What a row of the comparison has under each headline: its value by seed, and how it differs from base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline_lib.report import figures
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Verdict, conclude, item_differences, judge
from pipeline_lib.results.seeds import average, averaged_measure, over_seeds
from pipeline_lib.results.statistics import Interval

Entries = dict[str, "Entry"]  # by key


@dataclass(frozen=True)
class Entry:
    """One measure of one row: its value by seed, the seeds' mean difference from base with an interval."""

    before: Measure  # of the base
    after: Measure  # of the last seed, its value and interval those of the seeds in the mean
    values: tuple[float, ...]  # by seed, shares
    difference: Interval  # for other images and, of several seeds, other seeds
    p_value: float
    verdict: Verdict = "still"
    objection: str = ""  # why a change that the test finds does not count

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return self.after.value

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None of a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def changes(self) -> tuple[float, ...]:
        """Return the difference from base of each seed."""
        base = self.mean - self.difference.value
        return tuple(value - base for value in self.values)

    def drawn(self, label: str) -> figures.Difference:
        """Return the difference with its interval, and that of each seed, in percentage points."""
        value, low, high = self.difference
        seeds = tuple(100 * change for change in self.changes)
        return figures.Difference(label, (100 * value, 100 * low, 100 * high), self.verdict, seeds)


def compare(pairs: Sequence[tuple[Variant, Variant]], name: str, keys: Sequence[str], settings: Certainty) -> Entries:
    """Compare (before, after) pairs, one a seed, on a set: headlines `keys` and what must agree with them, unjudged."""
    by_seed = [{measure.key: measure for measure in after.measures(name)} for _, after in pairs]
    first = {measure.key: measure for measure in pairs[0][0].measures(name)}
    wanted = dict.fromkeys(key for own in keys for key in (own, first[own].agrees_with, first[own].not_against) if key)
    differences = {
        key: [item_differences(before, after, first[key]) for before, after in pairs] for key in wanted if key in first
    }
    averaged = {key: average(means) for key, means in differences.items()}
    intervals = statistics.intervals(
        averaged,
        pairs[0][1].evaluation.all_sets[name]["num_images"],
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    entries = {}
    for key, means in differences.items():
        measures = [measures[key] for measures in by_seed]
        difference, p_of_seeds = over_seeds(intervals[key], [mean.value for mean in means], settings.confidence)
        p_value = max(statistics.sign_flips_by_image(averaged[key]), p_of_seeds)
        values = tuple(measure.value for measure in measures)
        entries[key] = Entry(first[key], averaged_measure(measures), values, difference, p_value)
    return entries


def judge_rows(rows: Mapping[str, Entries], keys: Sequence[str], alpha: float) -> dict[str, Entries]:
    """Return the headlines `keys` of all rows with their verdicts, Holm's correction over all of them."""
    flat = [(label, key) for label, entries in rows.items() for key in keys if key in entries]
    adjusted = statistics.holm([rows[label][key].p_value for label, key in flat])
    judged: dict[str, Entries] = {label: {} for label in rows}
    for (label, key), p in zip(flat, adjusted, strict=True):
        entry = rows[label][key]
        others = {other: (one.before, one.difference) for other, one in rows[label].items()}
        verdict, against = conclude(judge(entry.difference, p, alpha), entry.before, entry.after, others)
        judged[label][key] = replace(entry, verdict=verdict, objection=against)
    return judged
