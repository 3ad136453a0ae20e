"""What a set could have shown, against the exact tests themselves."""

import numpy as np
import pytest

from pipeline_lib.results import power, statistics
from pipeline_lib.results.statistics import Mean


def two_models(count, per_image=1, agree=0.8, right=0.4, seed=0):
    """Hits of two models that agree on most items, and the image of each."""
    generator = np.random.default_rng(seed)
    first, other = (generator.random((2, count * per_image)) < right).astype(float)
    second = np.where(generator.random(len(first)) < agree, first, other)
    image_index = np.arange(count).repeat(per_image)
    return Mean(first, image_index), Mean(second, image_index)


@pytest.mark.parametrize("per_image", [1, 3])
def test_power_is_that_of_the_exact_test(per_image):
    """The share of simulated sets in which exact sign flips find the change, beside the normal approximation's."""
    before, after = two_models(150, per_image)
    for effect in (0.02, 0.1):
        sums = power.simulate(before, after, effect, seed=1)
        p_values = np.array([statistics.sign_flips(one) for one in sums])
        exact = ((p_values < 0.05) & (sums.sum(1) > 0)).mean()
        assert power.found(sums, 0.05) == pytest.approx(exact, abs=0.04)


def test_a_true_change_is_as_large_as_it_says_and_none_is_rarely_found():
    before, after = two_models(400)
    for effect in (0.0, 0.05):
        sums = power.simulate(before, after, effect, seed=0, runs=2000)
        assert sums.mean(1).mean() == pytest.approx(effect, abs=0.002)
    assert 0.005 < power.found(power.simulate(before, after, 0.0, seed=0, runs=2000), 0.05) < 0.03


def test_the_smallest_change_is_found_in_four_cases_of_five():
    for count, per_image in ((200, 1), (100, 4)):
        before, after = two_models(count, per_image)
        smallest = power.smallest_found(before, after, 0.0125, seed=0)
        sums = power.simulate(before, after, smallest, seed=5, runs=2000)
        assert power.found(sums, 0.0125) == pytest.approx(0.8, abs=0.07)


def test_copies_of_an_image_show_no_more_than_one():
    before, after = two_models(60)
    copied = [Mean(m.values.repeat(5), m.image_index.repeat(5)) for m in (before, after)]
    alone, more = (power.simulate(*pair, 0.0, seed=0, runs=5) for pair in ((before, after), copied))
    assert alone.shape == more.shape == (5, 60)
    np.testing.assert_array_equal(more, 5 * alone)


def test_a_model_that_is_always_right_cannot_rise():
    right = Mean(np.ones(10), np.arange(10))
    assert power.simulate(right, right, 0.5, seed=0, runs=3).sum() == 0
    assert np.isnan(power.smallest_found(right, right, 0.05, seed=0))


@pytest.mark.parametrize(("size", "wrong", "can"), [(50, 1, False), (200, 4, False), (50, 25, True), (1000, 50, True)])
def test_no_change_is_named_that_is_larger_than_what_is_left_to_gain(size, wrong, can):
    """Nearly always right: a true change that makes it always right is found too seldom, and there is none larger."""
    first = np.arange(size) >= wrong
    before, after = (Mean(one.astype(float), np.arange(size)) for one in (first, np.roll(first, 1)))
    left = power.room(before, after)
    assert left == pytest.approx(wrong / size)
    smallest = power.smallest_found(before, after, 0.01, seed=0)
    share = power.found(power.simulate(before, after, left, seed=3), 0.01)
    assert (share >= power.POWER) == can
    assert (smallest <= left) if can else np.isnan(smallest)


def test_two_models_that_agree_on_every_item_still_show_a_change():
    """There the sums are 0 until something changes; a change of 0 points was said to be found."""
    one = Mean((np.arange(1000) % 2).astype(float), np.arange(1000))
    smallest = power.smallest_found(one, one, 0.01, seed=0)
    sums = power.simulate(one, one, smallest, seed=5, runs=2000)
    assert 0 < smallest < 0.05
    assert 0.6 < power.found(sums, 0.01) < 0.95  # the sum goes in whole steps
