"""Measures on their way into results.json: each beside the items that it is the mean of, until it has its interval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results import statistics
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Interval, Mean

Block = dict[str, Any]  # nested results, in which a `Measured` stands for what results.json stores of it
Items = dict[str, np.ndarray]  # per-item arrays by name


class Measured(NamedTuple):
    """A measure and the items that it is the mean of."""

    measure: Measure
    mean: Mean | None = None  # None: a number that gets no interval


def with_intervals(block: Any, num_images: int, settings: EvaluateSettings) -> Any:
    """Return `block` with each `Measured` as results.json stores it, all intervals from the same resamples.

    Args:
        block: Nested dicts and lists.
        num_images: Images of the set; the resampled units.
        settings: Number and seed of the resamples, confidence.
    """
    measured = list(_measured(block))
    found = statistics.intervals(
        {str(number): one.mean for number, one in enumerate(measured) if one.mean is not None},
        num_images,
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    stored = (_stored(one.measure, found.get(str(number))) for number, one in enumerate(measured))

    def store(value: Any) -> Any:
        if isinstance(value, Measured):
            return next(stored)
        if isinstance(value, list):
            return [store(one) for one in value]
        return {key: store(one) for key, one in value.items()} if isinstance(value, dict) else value

    return store(block)


def _stored(measure: Measure, interval: Interval | None) -> dict[str, Any]:
    return (replace(measure, low=interval.low, high=interval.high) if interval else measure).stored()


def _measured(value: Any) -> Iterator[Measured]:
    """Return every `Measured` in nested dicts and lists, in their order."""
    if isinstance(value, Measured):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _measured(inner)


def headline_values(measures: Iterable[Measure]) -> dict[str, float]:
    """Return the numbers that a verdict names, by key."""
    return {measure.key: measure.value for measure in measures if measure.is_headline}


def metric_values(measures: Iterable[Measure], gap: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of a set by name: what DVC and MLflow compare."""
    return {measure.key: measure.value for measure in measures if measure.is_metric} | {**gap}
