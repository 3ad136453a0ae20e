"""What costs nothing and must be beaten: the base as it is and mean-centred, chance, always the commonest class."""

from __future__ import annotations

import math

from pipeline_lib.results.folders import CENTRED, Evaluation, Variant

BASE, MEAN_CENTRED, CHANCE, COMMONEST = "base", "mean-centred", "chance", "the commonest class"


def rank(score: float) -> float:
    """Return what sorts the largest score first, and last what has none (NaN), for want of a value somewhere."""
    return math.inf if math.isnan(score) else -score


def rival_values(base: Evaluation, set_name: str) -> dict[str, dict[str, float]]:
    """Return rival -> key of a headline of a set -> its value; what it has no value for is left out."""
    headlines = Variant(base).headlines(set_name)
    found: dict[str, dict[str, float | None]] = {
        BASE: {measure.key: measure.value for measure in headlines},
        MEAN_CENTRED: {measure.key: measure.value for measure in Variant(base, CENTRED).headlines(set_name)},
        CHANCE: {measure.key: measure.chance for measure in headlines},
        COMMONEST: {measure.key: measure.commonest for measure in headlines},
    }
    return {name: {k: v for k, v in values.items() if v is not None} for name, values in found.items()}
