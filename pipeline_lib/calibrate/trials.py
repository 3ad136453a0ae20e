"""One comparison of two models on a made set, measured and judged by the code that makes the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pipeline_lib.calibrate.worlds import TASK
from pipeline_lib.evaluate.embedded import Directions, EmbeddedSet
from pipeline_lib.evaluate.retrieval import retrieval
from pipeline_lib.evaluate.zero_shot import zero_shot
from pipeline_lib.results import paired, statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Paired
from pipeline_lib.results.seeds import average, averaged_measure, over_seeds
from pipeline_lib.results.statistics import Mean

SETTINGS = Certainty(bootstrap_samples=200, confidence=0.95, seed=0)


class Seen(NamedTuple):
    """A measure as a model shows it, and the items that it is the mean of."""

    measure: Measure
    mean: Mean


Shown = Mapping[str, Seen]  # by key: what is compared


def measure(embedded: EmbeddedSet) -> Shown:
    """Measure retrieval and classification of a set, without the gap."""
    directions = Directions.of(embedded, None)
    found, _, _ = retrieval(directions, embedded, (1,))
    classified, _, _ = zero_shot(directions, embedded, TASK)
    return {one.key: Seen(one, mean) for one, mean in [*found, *classified] if mean is not None and one.items}


def traded(models: Sequence[Shown], generator: np.random.Generator, num_images: int) -> list[Shown]:
    """Return two models that trade places by lot from image to image: between them nothing differs."""
    turn = generator.integers(2, size=num_images) == 1

    def mix(first: Seen, second: Seen) -> Seen:
        mean = first.mean._replace(values=np.where(turn[first.mean.image_index], second.mean.values, first.mean.values))
        return Seen(replace(first.measure, value=mean.value), mean)

    one, other = models
    return [{key: mix(one[key], other[key]) for key in one}, {key: mix(other[key], one[key]) for key in one}]


def judge(models: Sequence[Shown], num_images: int) -> list[Paired]:
    """Return the headlines of two models, before and after, with their verdicts."""
    before, after = models
    rows = paired.judged(_unjudged(before, after, num_images), SETTINGS)
    return [row for row in rows if row.adjusted_p is not None]


def judge_seeds(before: Shown, seeds: Sequence[Shown], num_images: int) -> list[Paired]:
    """Return the headlines with their verdicts over several seeds of the second model."""
    averaged = {key: Seen(one.measure, average([seed[key].mean for seed in seeds])) for key, one in seeds[0].items()}
    seen = [_with_intervals(seed, num_images) for seed in seeds]
    rows = []
    for row in _unjudged(before, averaged, num_images):
        key = row.before.key
        by_seed = [seed[key].mean.value - before[key].mean.value for seed in seeds]
        interval, p_of_seeds = over_seeds(row.difference, by_seed, SETTINGS.confidence)
        p_value = None if row.p_value is None else max(row.p_value, p_of_seeds)
        after = averaged_measure([one[key] for one in seen])
        rows.append(replace(row, after=after, difference=interval, p_value=p_value))
    return [row for row in paired.judged(rows, SETTINGS) if row.adjusted_p is not None]


def _unjudged(before: Shown, after: Shown, num_images: int) -> list[Paired]:
    first, second = (_with_intervals(shown, num_images) for shown in (before, after))
    found = [
        (first[key], second[key], before[key].mean._replace(values=after[key].mean.values - before[key].mean.values))
        for key in before
    ]
    return paired.unjudged(found, num_images, SETTINGS)


def _with_intervals(shown: Shown, num_images: int) -> dict[str, Measure]:
    intervals = statistics.intervals(
        {key: one.mean for key, one in shown.items()},
        num_images,
        num_samples=SETTINGS.bootstrap_samples,
        confidence=SETTINGS.confidence,
        seed=SETTINGS.seed,
    )
    return {key: replace(one.measure, **intervals[key]._asdict()) for key, one in shown.items()}
