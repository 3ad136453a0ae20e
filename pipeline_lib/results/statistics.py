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
import scipy.sparse
from scipy.special import ndtr

BLOCK_COUNTS = 2**22  # counts of resamples held at a time: 32 MB
SMALLEST_P = 1e-12
NEGLIGIBLE = 1e-20  # of a characteristic function
ONE_BY_ONE = 14  # differences whose signs are all gone through: 16,384 choices
FRACTIONS, GRID = 2521, 2**20  # denominators below it are tried (2520 is a multiple of 1 to 10); most steps of a sum


class Mean(NamedTuple):
    """A statistic: the mean of values that belong to images, or the mean of its means within groups (classes)."""

    values: np.ndarray  # [n]
    image_index: np.ndarray  # [n] integers: the image of each value, which is the unit that is resampled
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
    section 5A.12). An image that stands several times in a class is drawn as one.
    """
    values, group = _once_per_class(mean, group)
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
    values, generator = values[order], np.random.default_rng(seed)
    step = max(1, BLOCK_COUNTS // len(low))
    return np.concatenate(
        [
            values[low + generator.integers(size, size=(min(step, num_samples - start), len(low)))] @ weight
            for start in range(0, num_samples, step)
        ]
    )


def _once_per_class(mean: Mean, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one value and the class of each image of each class, in the order of the items: float64 [n], [n].

    An image that stands several times in a class gives their mean; all are then moved so that the mean over classes
    stays what it is.
    """
    values, places = mean.values.astype(np.float64), np.stack([group, mean.image_index], 1)
    _, first, row = np.unique(places, axis=0, return_index=True, return_inverse=True)
    if len(first) == len(values):
        return values, group
    sums, counts = np.bincount(row.ravel(), values), np.bincount(row.ravel())
    once = Mean(sums / counts, mean.image_index[first], group[first])
    return once.values + (mean.value - once.value), group[first]


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


def mean_over_sets(
    means: Sequence[Mean], sizes: Sequence[int], *, num_samples: int, confidence: float, seed: int
) -> Interval:
    """Return the mean of statistics of different sets, with its interval: each set is resampled by itself.

    The sets are taken to be independent: that of a resample is the mean of one resample of each, drawn with seeds of
    their own. The interval is then that of the images, the sets being given, not that of sets yet to come.

    Args:
        means: One statistic per set.
        sizes: The number of images of each set.
        num_samples: Resamples.
        confidence: Coverage, such as 0.95.
        seed: Decides the resamples, with the place of the set.
    """
    drawn = [
        bootstrap({"": mean}, size, num_samples=num_samples, seed=seed + place)[""]
        for place, (mean, size) in enumerate(zip(means, sizes, strict=True))
    ]
    value = float(np.mean([mean.value for mean in means]))
    return Interval(value, *_percentiles(np.mean(drawn, axis=0), confidence))


def _percentiles(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def sign_flips_by_image(difference: Mean) -> float:
    """Return the p-value of a mean difference, in which the values of an image go together, each with its weight."""
    weights = 1.0 if difference.group is None else 1 / np.bincount(difference.group)[difference.group]
    return sign_flips(np.bincount(difference.image_index, difference.values * weights))


def sign_flips(differences: np.ndarray) -> float:
    """Test by exact sign flips whether differences of pairs are as likely of either sign: the two-sided p-value.

    The share of all 2^n choices of signs whose sum is as far from zero as the one observed; no choice is drawn by lot.
    Few are gone through. Of many, hits differ by multiples of some fraction, and then the sums' distribution is the
    Fourier transform of Π cos(t d). Its rounding is below SMALLEST_P, and smaller p-values are given as that. Other
    differences are first rounded to a fine grid, and what that took off is added as a normal sum: of many small ones
    beside a few large ones nothing else is left. For differences of −1, 0 and 1 this is McNemar's exact test.
    Source: Fisher 1935; Good 2005, chapter 3.

    Args:
        differences: [n], one per independent unit (image), its captions summed.

    >>> sign_flips(np.array([1, 1, 1, 1, 0, 0]))  # 4 against 0: 2 / 16
    0.125
    """
    differences = differences[differences != 0].astype(np.float64)
    if len(differences) <= ONE_BY_ONE:
        return _all_flips(differences)
    scale, is_exact = _scale(differences)
    scaled, beyond = np.abs(differences) * scale, abs(float(differences.sum()) * scale)
    steps = scaled.round().astype(np.int64)
    total = int(steps.sum())
    chances = np.fft.irfft(_cosine_product(steps, total), 2 * total + 1)[: total + 1]  # of sums 0, 1, …, total
    if is_exact:
        share = 2 * chances[round(beyond) :].sum() if round(beyond) else 1.0
    else:
        share = _share_beyond(beyond, chances, steps, scaled - steps)
    return float(np.clip(round(share, 15), max(2.0 ** (1 - len(differences)), SMALLEST_P), 1.0))


def _share_beyond(beyond: float, chances: np.ndarray, steps: np.ndarray, rest: np.ndarray) -> float:
    """Return how often a sum is as far from zero as `beyond`, given the chances of the sums of its `steps` alone.

    What rounding left of each difference has its sign: the sum of these rests, given that of the steps, is taken to be
    normal, about its regression on that.
    """
    slope = float(rest @ steps) / float(steps @ steps)
    spread = max(1e-6, float(np.square(rest - slope * steps).sum())) ** 0.5
    sums = (1 + slope) * np.arange(len(chances))
    above, below = (ndtr((side * sums - beyond) / spread) for side in (1, -1))
    return float(2 * (chances @ above + chances[1:] @ below[1:]))


def _all_flips(differences: np.ndarray) -> float:
    """Return the p-value of few differences from all choices of signs, one by one."""
    sums = np.zeros(1)
    for one in differences:
        sums = np.concatenate([sums + one, sums - one])
    return float((np.abs(sums) >= abs(differences.sum()) - 1e-6 * np.abs(differences).sum()).mean())


def _cosine_product(sizes: np.ndarray, total: int) -> np.ndarray:
    """Return Π cos(t size) at t = 2π k / (2 total + 1) for k = 0 … total: [total + 1].

    No factor is above 1, so what has become negligible is left at 0: soon little but the lowest t is left to compute.
    """
    product = np.zeros(total + 1)
    left = np.arange(total + 1)
    values = np.ones(total + 1)
    distinct, counts = np.unique(sizes, return_counts=True)
    for place in np.argsort(-counts * np.square(distinct.astype(np.float64)), kind="stable"):
        values *= np.cos((2 * np.pi / (2 * total + 1)) * distinct[place] * left) ** counts[place]
        kept = np.abs(values) > NEGLIGIBLE
        if 2 * kept.sum() < len(kept):
            left, values = left[kept], values[kept]
    product[left] = values
    return product


def _scale(differences: np.ndarray) -> tuple[float, bool]:
    """Return by what differences, none of them 0, become whole numbers, and whether they do so exactly.

    Those without a common fraction are put on a grid whose step is about 1/500 of the spread of their signed sum, and
    an eighth of their median at most, where that takes no more than 2^18 steps.
    """
    total = np.abs(differences).sum()
    for parts in _common_parts(np.unique(np.abs(differences))):
        if total * parts > GRID:
            break
        return parts, True
    fine = min(2**18, 8 * total / np.median(np.abs(differences)))
    return float(max(2**14, 512 * np.sqrt(len(differences)), fine)) / total, False


def _common_parts(distinct: np.ndarray) -> Iterator[int]:
    """Yield the numbers of parts below `FRACTIONS` of which all values are multiples; a few values rule most out."""
    parts = np.arange(1, FRACTIONS)
    steps = distinct[:8, None] * parts
    for part in parts[(np.abs(steps - steps.round()) <= 1e-6 * parts).all(0)].tolist():
        steps = distinct * part
        if np.abs(steps - steps.round()).max(initial=0) <= 1e-6 * part:
            yield part


def distance_change(
    before: np.ndarray, after: np.ndarray, unit: np.ndarray, *, num_samples: int, confidence: float, seed: int
) -> Interval:
    """Return the change of the distance between two centroids on the same pairs, with its bootstrap interval.

    The distance of a sample is larger than that of the whole: E‖mean‖² = ‖μ‖² + tr C / N, most visibly where the whole
    has none, and a resample adds as much again. Both are taken off the squares, so that value and interval are those of
    the distances without the noise of so few pairs (at least 0).

    Args:
        before: One side of each pair minus the other, before: [N, D].
        after: The same pairs after: [N, D].
        unit: The image of each pair, equal for copies, of which at least two differ: [N].
        num_samples: Resamples of the images, each with its copies.
        confidence: Coverage, such as 0.95.
        seed: Decides the resamples.

    Raises:
        ValueError: The numbers of pairs differ.
    """
    if len(before) != len(after):
        raise ValueError(f"the same pairs are needed, got {len(before)} and {len(after)}")
    _, unit, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    owner = scipy.sparse.csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))))  # [images, N]
    sides = [owner @ side.astype(np.float64) for side in (before, after)]  # sums over the copies of an image
    means = [side.sum(0) / len(unit) for side in sides]
    spread = len(sizes) / (len(sizes) - 1) / len(unit) ** 2  # of a mean whose weights are drawn with its images
    noise = [spread * np.square(side - np.outer(sizes, mean)).sum() for side, mean in zip(sides, means, strict=True)]

    def difference(means: Sequence[np.ndarray], times: int) -> np.ndarray:
        squares = [np.square(mean).sum(-1) - times * extra for mean, extra in zip(means, noise, strict=True)]
        first, second = np.sqrt(np.maximum(squares, 0))
        return second - first

    blocks = [
        difference([counts @ side / (counts @ sizes)[:, None] for side in sides], 2)
        for counts in resample_counts(len(sizes), num_samples, seed)
    ]
    value = difference(means, 1)
    return Interval(float(value), *_percentiles(np.concatenate(blocks), confidence))


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
