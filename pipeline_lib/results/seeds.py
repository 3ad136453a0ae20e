"""A difference over several seeds of one configuration: as sure as the images and the seeds let one be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Interval, Mean


def average(means: Sequence[Mean]) -> Mean:
    """Return the mean over seeds of the same items."""
    return means[0]._replace(values=np.mean([mean.values for mean in means], axis=0))


def averaged_measure(measures: Sequence[Measure]) -> Measure:
    """Return a measure whose value and interval are the means over seeds."""
    value, low, high = (float(np.mean(column)) for column in zip(*(m.interval for m in measures), strict=True))
    return replace(measures[-1], value=value, low=low, high=high)


def over_seeds(images: Interval, by_seed: Sequence[float], confidence: float) -> tuple[Interval, float]:
    """Return the mean difference over seeds with the interval for other images and other seeds, and its p-value.

    Its variance is that over images, of the seeds' average, plus s² / S of the S seeds, whose S − 1 degrees of freedom
    count as far as seeds matter (Satterthwaite 1946; as readers and cases in multi-reader studies, Hillis 2007). A part
    of the images' noise is in both, which errs on the wide side. The verdict takes the larger of this p-value and that
    of the exact test over images.

    Args:
        images: The mean difference over seeds, with its interval over images at the same `confidence`.
        by_seed: The difference of each seed. A single one adds nothing: the interval stays, and the p-value is 0.
        confidence: Coverage, such as 0.95.

    >>> interval, p = over_seeds(Interval(0.02, 0.01, 0.03), [0.0, 0.02, 0.04], 0.95)
    >>> [round(end, 3) for end in interval], round(p, 3)  # seeds that differ much widen 0.01 to 0.03
    ([0.02, -0.021, 0.061], 0.216)
    """
    if len(by_seed) == 1:
        return images, 0.0
    of_images = ((images.high - images.low) / 2 / stats.norm.isf((1 - confidence) / 2)) ** 2
    of_seeds = float(np.var(by_seed, ddof=1)) / len(by_seed)
    if not of_seeds:
        return images, float(_two_sided(images.value, of_images, np.inf))
    freedom = (of_images + of_seeds) ** 2 / (of_seeds**2 / (len(by_seed) - 1))
    half = stats.t.isf((1 - confidence) / 2, freedom) * np.sqrt(of_images + of_seeds)
    p_value = _two_sided(images.value, of_images + of_seeds, freedom)
    return Interval(images.value, float(images.value - half), float(images.value + half)), float(p_value)


def _two_sided(value: float, variance: float, freedom: float) -> float:
    """Return the p-value of a value with this variance under none, by Student's t."""
    if variance == 0:
        return 0.0 if value else 1.0
    return 2 * stats.t.sf(abs(value) / np.sqrt(variance), freedom)
