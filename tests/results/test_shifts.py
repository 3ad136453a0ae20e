"""The mean change over the shifts of a set, against the formula for means of independent samples."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Paired, item_differences
from pipeline_lib.results.shifts import compare_shifts
from pipeline_lib.results.statistics import Interval, Mean

SETTINGS = Certainty(confidence=0.95, bootstrap_samples=4000, seed=0)
SIZES = {"imagenet": 500, "sketch": 100, "art": 400, "twin": 400}


def variant(gain):
    """Hits on every set; `gain` is the share of images that are right in any case."""
    generator = np.random.default_rng(0)
    hits = {name: (generator.random(size) < 0.5).astype(float) for name, size in SIZES.items()}
    hits = {name: np.maximum(values, generator.random(len(values)) < gain) for name, values in hits.items()}
    return SimpleNamespace(
        evaluation=SimpleNamespace(all_sets={name: {"num_images": size} for name, size in SIZES.items()}),
        mean=lambda measure: Mean(hits[measure.set_name], np.arange(SIZES[measure.set_name])),
    )


BEFORE, AFTER = variant(0.0), variant(0.2)


def row(name, key="zero_shot_class_top1", kind="zero_shot", is_headline=True):
    measure = Measure(name, key, key, kind, 0.5, is_headline=is_headline)
    return Paired(measure, measure, Interval(item_differences(BEFORE, AFTER, measure).value, 0.0, 0.0))


def compare(comparison, **shift_of):
    return compare_shifts(BEFORE, AFTER, comparison, shift_of, SETTINGS)


def test_the_mean_change_is_that_of_the_sets_and_its_interval_that_of_their_images():
    rows = [row("sketch"), row("imagenet"), row("art")]
    (found,) = compare(rows, sketch="imagenet", art="imagenet")
    assert found.source is rows[1]
    assert list(found.shifts) == [rows[0], rows[2]]
    changes = [item_differences(BEFORE, AFTER, one.before).values for one in found.shifts]
    value = np.mean([change.mean() for change in changes])  # each set counts alike, whatever its size
    error = np.sqrt(sum(change.var() / len(change) for change in changes)) / 2  # of the mean of independent means
    assert tuple(found.mean) == pytest.approx((value, value - 1.96 * error, value + 1.96 * error), abs=0.2 * error)


def test_sets_of_one_size_are_resampled_each_by_itself():
    """With the same draws for both the interval of their mean would be as wide as that of one."""
    rows = [row("imagenet"), row("art")]
    (one,) = compare(rows, art="imagenet")
    (two,) = compare([*rows, rows[1]], art="imagenet")
    assert two.mean.value == pytest.approx(one.mean.value)
    width, of_two = (found.mean.high - found.mean.low for found in (one, two))
    assert of_two == pytest.approx(width / np.sqrt(2), rel=0.2)


def test_only_headlines_of_one_task_on_declared_sets_are_compared():
    others = [
        row("art", kind="recall"),
        row("art", key="zero_shot_size_top1"),
        row("art", key="zero_shot_class_top5", is_headline=False),
    ]
    assert compare([row("imagenet"), row("art")]) == []
    assert compare([row("imagenet"), *others], art="imagenet") == []
    (found,) = compare([row("imagenet"), *others, row("art"), row("twin")], art="imagenet", twin="other")
    assert [one.before.set_name for one in found.shifts] == ["art"]
