"""How sure a number is: bootstrap over images, paired tests of two models on the same items, correction for many tests.

Pure functions of arrays, seeded, vectorised over resamples. Notable:

- The unit that is resampled is the image: its captions come and go with it, because they share its difficulty.
- Only how often each image was drawn matters, so a resample is a vector of counts and a statistic a sparse product.
- Two models measured on the same items are compared by the mean of their difference, resampled likewise. That is far
  sharper than two intervals side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

BLOCK_COUNTS = 2**22  # counts of resamples held at a time: 32 MB


class Mean(NamedTuple):
    """A statistic: the mean of values that belong to images, or the mean of its means within groups (classes)."""

    values: np.ndarray  # [n]
    image_index: np.ndarray  # [n] integers: the image of each value
    group: np.ndarray | None = None  # [n] integers: its class, for a mean over classes

    @property
    def value(self) -> float:
        """The statistic on the items as they are; NaN without any."""
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
    """How often each image is drawn in each of `num_samples` resamples with replacement, block by block [r, N].

    The counts are multinomial; a function of (num_images, num_samples, seed) alone.
    """
    generator = np.random.default_rng(seed)
    step = max(1, BLOCK_COUNTS // num_images)
    for start in range(0, num_samples, step):
        rows = min(step, num_samples - start)
        drawn = generator.integers(num_images, size=(rows, num_images)) + num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images)


def bootstrap(means: Mapping[str, Mean], num_images: int, *, num_samples: int, seed: int) -> dict[str, np.ndarray]:
    """Each statistic on the same resamples of the images: [num_samples] float64 by name.

    NaN where a resample holds none of a statistic's items. Source: Efron & Tibshirani 1993, chapter 6.
    """
    tables = {name: _sums_and_counts(mean, num_images) for name, mean in means.items()}
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in means}
    for counts in resample_counts(num_images, num_samples, seed):
        drawn = counts.T.astype(np.float64)
        for name, (sums, sizes) in tables.items():
            with np.errstate(invalid="ignore"):
                group_means = (sums @ drawn) / (sizes @ drawn)  # [groups, r]
            present = ~np.isnan(group_means)
            with np.errstate(invalid="ignore"):
                blocks[name].append(np.where(present, group_means, 0).sum(0) / present.sum(0))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _sums_and_counts(mean: Mean, num_images: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Sum and number of the values of each group in each image: two sparse [groups, num_images]."""
    group = np.zeros(len(mean.values), dtype=np.int64) if mean.group is None else mean.group
    shape = (int(group.max(initial=0)) + 1, num_images)
    where = (group, mean.image_index)
    ones = np.ones(len(mean.values))
    return (
        sparse.csr_array((mean.values.astype(np.float64), where), shape=shape),
        sparse.csr_array((ones, where), shape=shape),
    )


def intervals(
    means: Mapping[str, Mean], num_images: int, *, num_samples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Each statistic with its percentile bootstrap interval over images.

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
    """Paired bootstrap: each mean difference of two models with its interval and two-sided p-value.

    Args:
        differences: By name, `Mean` over refined minus base of the same items.
        num_images: Images of the set.
        num_samples: Resamples; the smallest possible p-value is 2 / (num_samples + 1).
        confidence: Coverage of the intervals.
        seed: Decides the resamples.
    """
    replicates = bootstrap(differences, num_images, num_samples=num_samples, seed=seed)
    return {
        name: PairedTest(mean.value, *_percentiles(replicates[name], confidence), _two_sided(replicates[name]))
        for name, mean in differences.items()
    }


def _percentiles(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def _two_sided(replicates: np.ndarray) -> float:
    """Twice the smaller share of replicates on either side of zero, the observed one counted among them."""
    finite = replicates[~np.isnan(replicates)]
    beyond = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(finite) + 1)))


def distance_change(
    before: np.ndarray, after: np.ndarray, *, num_samples: int, confidence: float, seed: int
) -> Interval:
    """Change of the distance between two centroids, from the same pairs, with its percentile bootstrap interval.

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
    """Exact two-sided McNemar test of two classifiers on the same items: the p-value; 1 if they never differ.

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


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm 1979): the family-wise error stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
