"""What a set can show: how often a true change of some points would have been found, by simulation on its own items.

The simulated world has the items of both models. In it nothing differs at first: each image's items are those of one
model before and of the other after, which is which by lot. Then a true change is made: so many of the images are set
right with all their items that the mean rises by the wanted points in expectation. The test of the difference is that
of the verdict, its p-value by the normal approximation, corrected for steps, which is close enough for a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

RUNS = 400  # simulated sets: a share is known to ± 5 points
POWER = 0.8  # at which a change counts as one that is found
EFFECTS = (0.01, 0.02, 0.05)  # true changes that are asked for, as shares


def simulate(before: Mean, after: Mean, effect: float, *, seed: int, runs: int = RUNS) -> np.ndarray:
    """Return the sum of each unit's differences in sets in which a true change was made: [runs, units].

    Args:
        before: Items of one model, shares between 0 and 1 whose plain mean is the number.
        after: The same items of the other.
        effect: By how much the mean of the items rises, at most by what is left to 1.
        seed: Decides the lots.
        runs: Simulated sets.
    """
    generator = np.random.default_rng(seed)
    _, unit = np.unique(before.image_index, return_inverse=True)
    first, second = before.values.astype(np.float64), after.values.astype(np.float64)
    left = room(before, after)
    chance = min(1.0, effect / left) if left > 0 else 0.0
    change, of_first, of_second = (np.bincount(unit, items) for items in (second - first, 1 - first, 1 - second))
    traded = generator.random((runs, len(change))) < 0.5
    improved = generator.random((runs, len(change))) < chance
    return np.where(improved, np.where(traded, of_second, of_first), np.where(traded, -change, change))


def room(before: Mean, after: Mean) -> float:
    """Return by how much the mean of two models' items can rise at most, as a share."""
    return float(np.mean(1 - (before.values.astype(np.float64) + after.values.astype(np.float64)) / 2))


def found(sums: np.ndarray, level: float) -> float:
    """Return the share of simulated sets [runs, units] in which a two-sided test at `level` finds a rise."""
    return float((_margins(sums, level) > 0).mean())


def _margins(sums: np.ndarray, level: float) -> np.ndarray:
    """Return by how much each simulated set's sum is beyond what the test asks for: [runs].

    The sum goes in steps, of which half is taken off: of the smallest difference, as hits have one.
    """
    sizes = np.abs(sums[sums != 0])
    step = float(sizes.min()) if len(sizes) else 0.0
    return sums.sum(1) - step + ndtri(level / 2) * np.sqrt(np.square(sums).sum(1))


def power(before: Mean, after: Mean, level: float, *, seed: int, effects: Sequence[float] = EFFECTS) -> list[float]:
    """Return for each true change the share of sets like this one in which it would be found at `level`."""
    return [found(simulate(before, after, effect, seed=seed), level) for effect in effects]


def smallest_found(before: Mean, after: Mean, level: float, *, seed: int) -> float:
    """Return the smallest true change that is found in four sets of five, as a share; NaN where none can be.

    There the margin of the test is z(0.8) of its spread in the mean, over sets simulated with such a change. None can
    be found so often where not even a model that is always right would be: too little is left to gain, on too few.
    """
    size, most = len(before.values), room(before, after)

    def lacking(effect: float) -> float:
        margins = _margins(simulate(before, after, effect, seed=seed, runs=RUNS // 2), level)
        return float(ndtri(POWER) * margins.std() - margins.mean())

    if lacking(most) >= 0:
        return math.nan
    effect = 0.0
    for _ in range(5):  # two models that agree on every item differ by one of them at least
        effect = float(np.clip(effect + lacking(effect) / size, min(1 / size, most), most))
    return effect


@dataclass(frozen=True)
class Resolution:
    """What a comparison could have shown of one headline."""

    measure: Measure
    found: tuple[float, ...]  # of true changes `EFFECTS`, the share that would have been found
    smallest: float  # the change that is found in four cases of five; NaN where none can be

    @property
    def shows_none(self) -> bool:
        """Return whether not even a model that is always right would be found in four cases of five."""
        return math.isnan(self.smallest)


def resolution(before: Variant, after: Variant, measure: Measure, level: float, seed: int) -> Resolution:
    """Return what the test of a headline of both models could have shown at `level`."""
    items = before.mean(measure), after.mean(measure)
    return Resolution(measure, tuple(power(*items, level, seed=seed)), smallest_found(*items, level, seed=seed))
