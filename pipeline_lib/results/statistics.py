"""How sure a number is: bootstrap over images, paired tests of two models on the same items, correction for many tests.

Pure functions of arrays, seeded, vectorised over resamples. Notable:

- The unit that is resampled is the image: its captions come and go with it, because they share its difficulty.
- Only how often each image was drawn matters, so a resample is a vector of counts and a statistic a product with it.
- A mean over classes resamples within each class, so that none is ever missing.
- Two models measured on the same items are compared by the mean of their difference, resampled likewise. That is far
  sharper than two intervals side by side. Whether it is more than chance is a test of its own, exact at any size: if
  nothing differs, each image's difference might as well have had the other sign.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BLOCK_COUNTS = 2**22  # counts of resamples held at a time: 32 MB
SMALLEST_P = 1e-12
FRACTIONS, GRID = 2521, 2**20  # denominators below it are tried (2520 is a multiple of 1 to 10); most steps of a sum


class Mean(NamedTuple):
    """A statistic: the mean of values that belong to images, or the mean of its means within groups (classes)."""

    values: np.ndarray  # [n]
    image_index: np.ndarray  # [n] integers: the image of each value
    group: np.ndarray | None = None  # [n] integers: its class, for a mean over classes

    @property
    def value(self) -> float:
        """Return the statistic on the items as they are; NaN without any."""
        if self.group is None:
            return float(self.values.mean()) if len(self.values) else float("nan")
        sums, counts = np.bincount(self.group, self.values), np.bincount(self.group)
        return float((sums[counts > 0] / counts[counts > 0]).mean()) if len(self.values) else float("nan")


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Refined minus base on the same items: the difference, its interval, and how likely chance alone is."""

    difference: float
    low: float
    high: float
    p_value: float


def resample_counts(num_images: int, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Return how often each image is drawn in each of `num_samples` resamples with replacement, block by block [r, N].

    The counts are multinomial; a function of (num_images, num_samples, seed) alone.
    """
    generator = np.random.default_rng(seed)
    step = max(1, BLOCK_COUNTS // num_images)
    for start in range(0, num_samples, step):
        rows = min(step, num_samples - start)
        drawn = generator.integers(num_images, size=(rows, num_images)) + num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images)


def bootstrap(means: Mapping[str, Mean], num_images: int, *, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    """Return each statistic on resamples of the images: [num_samples] float64 by name.

    Those without groups share their resamples; NaN where a resample holds none of a statistic's items. Source: Efron &
    Tibshirani 1993, chapter 6.
    """
    shared = {name: _by_image(mean, num_images) for name, mean in means.items() if mean.group is None}
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in shared}
    if shared:
        for counts in resample_counts(num_images, num_samples, seed):
            for name, (sums, sizes) in shared.items():
                with np.errstate(invalid="ignore"):
                    blocks[name].append((counts @ sums) / (counts @ sizes))
    found = {name: np.concatenate(parts) for name, parts in blocks.items()}
    return {
        name: found[name] if mean.group is None else _bootstrap_classes(mean, mean.group, num_samples, seed)
        for name, mean in means.items()
    }


def _by_image(mean: Mean, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the values of each image: float64 [num_images] twice."""
    sums = np.bincount(mean.image_index, mean.values, minlength=num_images)
    return sums, np.bincount(mean.image_index, minlength=num_images).astype(np.float64)


def _bootstrap_classes(mean: Mean, group: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Return a mean of class means, on resamples within each class: [num_samples].

    Of a class of n images n − 1 are drawn: the mean of these varies as a sample's mean does, that of n too little,
    which classes of few images make worth minding (Rao & Wu 1988). A class of one image says nothing of its spread;
    such classes are drawn as one, as if they were alike, which errs on the wide side (collapsed strata, Cochran 1977,
    section 5A.12).

    Raises:
        ValueError: An image has several values.
    """
    if len(np.unique(mean.image_index)) != len(mean.image_index):
        raise ValueError("a mean over classes needs one value per image")
    sizes = np.bincount(group)
    stratum = np.where(sizes[group] == 1, len(sizes), group)  # all classes of one image are one stratum more
    order = np.argsort(stratum, kind="stable")
    _, first, count = np.unique(stratum[order], return_index=True, return_counts=True)
    num_drawn = np.maximum(count - 1, 1)
    classes = np.ones(len(count))
    if 1 in sizes:
        classes[-1] = count[-1]
    low, size, weight = (
        np.repeat(each, num_drawn) for each in (first, count, classes / (num_drawn * (sizes > 0).sum()))
    )
    values, generator = mean.values[order].astype(np.float64), np.random.default_rng(seed)
    step = max(1, BLOCK_COUNTS // len(low))
    return np.concatenate(
        [
            values[low + generator.integers(size, size=(min(step, num_samples - start), len(low)))] @ weight
            for start in range(0, num_samples, step)
        ]
    )


def intervals(
    means: Mapping[str, Mean], num_images: int, *, num_samples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Return each statistic with its percentile bootstrap interval over images.

    Args:
        means: Statistics by name.
        num_images: Images of the set; the resampled units.
        num_samples: Resamples.
        confidence: Coverage, such as 0.95.
        seed: Decides the resamples.
    """
    replicates = bootstrap(means, num_images, num_samples=num_samples, seed=seed)
    return {name: Interval(mean.value, *_percentiles(replicates[name], confidence)) for name, mean in means.items()}


def paired_tests(
    differences: Mapping[str, Mean], num_images: int, *, num_samples: int, confidence: float, seed: int
) -> dict[str, PairedTest]:
    """Return each mean difference of two models with its bootstrap interval and the p-value of `sign_flips` by image.

    Args:
        differences: By name, `Mean` over refined minus base of the same items.
        num_images: Images of the set.
        num_samples: Resamples, for the intervals.
        confidence: Coverage of the intervals.
        seed: Decides the resamples.
    """
    replicates = bootstrap(differences, num_images, num_samples=num_samples, seed=seed)
    return {
        name: PairedTest(mean.value, *_percentiles(replicates[name], confidence), _chance(mean))
        for name, mean in differences.items()
    }


def _percentiles(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def _chance(difference: Mean) -> float:
    """Return the p-value of a mean difference, in which the values of an image go together, each with its weight."""
    weights = 1.0 if difference.group is None else 1 / np.bincount(difference.group)[difference.group]
    return sign_flips(np.bincount(difference.image_index, difference.values * weights))


def sign_flips(differences: np.ndarray) -> float:
    """Test by exact sign flips whether differences of pairs are as likely of either sign: the two-sided p-value.

    The share of all 2^n choices of signs whose sum is as far from zero as the one observed. Hits differ by multiples of
    some fraction, and then the sums' distribution is the Fourier transform of Π cos(t d), computed at once: no choice
    is drawn by lot. Its rounding is below SMALLEST_P, and smaller p-values are given as that. Other differences are
    first rounded to a fine grid. For differences of −1, 0 and 1 this is McNemar's exact test.
    Source: Fisher 1935; Good 2005, chapter 3.

    Args:
        differences: [n], one per independent unit (image), its captions summed.

    >>> sign_flips(np.array([1, 1, 1, 1, 0, 0]))  # 4 against 0: 2 / 16
    0.125
    """
    steps = _on_grid(differences[differences != 0])
    if not len(steps):
        return 1.0
    total = int(np.abs(steps).sum())
    period = 2 * total + 1
    angles = 2 * np.pi * np.arange(total + 1) / period
    transform = np.ones(total + 1)
    for size, count in zip(*np.unique(np.abs(steps), return_counts=True), strict=True):
        cosines = np.cos(size * angles)
        transform *= cosines**count if count > 1 else cosines
    chances = np.fft.irfft(transform, period)  # of sums 0, 1, …, total, −total, …, −1
    beyond = abs(int(steps.sum()))
    share = 2 * chances[beyond : total + 1].sum() if beyond else 1.0
    return float(np.clip(round(share, 15), max(2.0 ** (1 - len(steps)), SMALLEST_P), 1.0))


def _on_grid(differences: np.ndarray) -> np.ndarray:
    """Return differences, none of them 0, as multiples of their common fraction, or of a fine grid without one."""
    distinct = np.unique(np.abs(differences))
    for parts in range(1, FRACTIONS):
        steps = distinct * parts
        if np.abs(steps - steps.round()).max(initial=0) <= 1e-6 * parts:
            if np.abs(differences).sum() * parts > GRID:
                break
            return (differences * parts).round().astype(np.int64)
    total = max(2**14, 64 * len(differences))  # 64 steps in the mean: rounding is 0.5 % of a standard deviation
    rounded = (differences * (total / np.abs(differences).sum())).round().astype(np.int64)
    return rounded[rounded != 0]


def distance_change(
    before: np.ndarray, after: np.ndarray, *, num_samples: int, confidence: float, seed: int
) -> Interval:
    """Return the change of the distance between two centroids on the same pairs, with its bootstrap interval.

    The distance of a sample is larger than that of the whole: E‖mean‖² = ‖μ‖² + tr C / N, most visibly where the whole
    has none, and a resample adds as much again. Both are taken off the squares, so that value and interval are those of
    the distances without the noise of so few pairs (at least 0).

    Args:
        before: One side of each pair minus the other, before: [N, D], N >= 2.
        after: The same pairs after: [N, D].
        num_samples: Resamples of the pairs.
        confidence: Coverage, such as 0.95.
        seed: Decides the resamples.

    Raises:
        ValueError: The numbers of pairs differ.
    """
    if len(before) != len(after):
        raise ValueError(f"the same pairs are needed, got {len(before)} and {len(after)}")
    sides = [side.astype(np.float64) for side in (before, after)]
    noise = [side.var(0, ddof=1).sum() / len(side) for side in sides]

    def difference(means: Sequence[np.ndarray], times: int) -> np.ndarray:
        squares = [np.square(mean).sum(-1) - times * extra for mean, extra in zip(means, noise, strict=True)]
        first, second = np.sqrt(np.maximum(squares, 0))
        return second - first

    blocks = [
        difference([counts @ side / len(side) for side in sides], 2)
        for counts in resample_counts(len(before), num_samples, seed)
    ]
    value = difference([side.mean(0) for side in sides], 1)
    return Interval(float(value), *_percentiles(np.concatenate(blocks), confidence))


def mcnemar(base_correct: np.ndarray, refined_correct: np.ndarray) -> float:
    """Test two classifiers on the same items by McNemar's exact test: the two-sided p-value; 1 if they never differ.

    Only the items on which exactly one is right count; under no difference each is a fair coin.
    Source: McNemar 1947; Dietterich 1998 recommends it for classifiers.

    >>> mcnemar(np.array([1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 1, 1, 1, 1, 1]))  # 1 against 5: 14 / 64
    0.21875

    Raises:
        ValueError: The shapes differ.
    """
    if base_correct.shape != refined_correct.shape:
        raise ValueError(f"the same items are needed, got {base_correct.shape} and {refined_correct.shape}")
    base, refined = base_correct.astype(bool), refined_correct.astype(bool)
    lost, gained = int((base & ~refined).sum()), int((~base & refined).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def detectable(half_width: float, confidence: float, num_tests: int, *, power: float = 0.8) -> float:
    """Return the smallest change found with this power among so many tests, from the half-width of an interval.

    The half-width is z(1 − α/2) standard errors; a change of z(1 − α/(2·tests)) + z(power) of them clears the level
    that Holm's correction asks of the first. For one test at 95 % that is 1.43 half-widths.

    >>> round(detectable(1.0, 0.95, 1), 2), round(detectable(1.0, 0.95, 4), 2)
    (1.43, 1.7)
    """
    tail = (1 - confidence) / 2
    level, found = stats.norm.ppf([1 - tail / num_tests, power])
    return float(half_width * (level + found) / stats.norm.ppf(1 - tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in the order given (Holm 1979): the family-wise error stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
