"""Intervals and tests against slow resampling, hand-worked cases and scipy; and that they cover what they promise."""

import itertools

import numpy as np
import pytest
from scipy import stats

from pipeline_lib.results import statistics
from pipeline_lib.results.statistics import Mean


def test_resamples_draw_every_image_once_on_average(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_COUNTS", 100)
    blocks = list(statistics.resample_counts(30, 500, seed=0))
    assert len(blocks) > 1
    counts = np.concatenate(blocks)
    assert counts.shape == (500, 30)
    assert (counts.sum(1) == 30).all()
    assert np.abs(counts.mean(0) - 1).max() < 0.25
    assert counts.var() == pytest.approx(1 - 1 / 30, rel=0.05)  # multinomial


def test_bootstrap_equals_drawing_the_images_one_by_one():
    """Captions follow their image: each resample's mean is the plain mean over the drawn images' captions."""
    generator = np.random.default_rng(0)
    index = np.sort(generator.integers(8, size=25))
    values = generator.random(25)
    found = statistics.bootstrap({"plain": Mean(values, index)}, 8, num_samples=20, seed=5)
    for r, counts in enumerate(np.concatenate(list(statistics.resample_counts(8, 20, seed=5)))):
        items = [item for image in range(8) for _ in range(counts[image]) for item in np.flatnonzero(index == image)]
        assert found["plain"][r] == pytest.approx(values[items].mean())


def test_class_means_are_resampled_within_each_class(monkeypatch):
    """Every class is in every resample, its mean with the variance that theory gives: s² / n."""
    monkeypatch.setattr(statistics, "BLOCK_COUNTS", 1000)
    generator = np.random.default_rng(0)
    labels = generator.permutation([0] * 2 + [1] * 5 + [4] * 20)  # classes 2 and 3 do not occur
    values = generator.random(27) + labels
    mean = Mean(values, generator.permutation(27), labels)
    found = statistics.bootstrap({"x": mean}, 27, num_samples=20_000, seed=0)["x"]
    of_class = [values[labels == c] for c in (0, 1, 4)]
    expected = np.sqrt(sum(v.var(ddof=1) / len(v) for v in of_class)) / 3
    assert found.mean() == pytest.approx(mean.value, abs=4 * expected / np.sqrt(20_000))
    assert found.std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("sizes", [[1] * 20 + [2] * 20 + [3] * 15 + [5] * 15 + [8] * 10 + [12] * 6, [2] * 20 + [5] * 9])
def test_intervals_of_class_means_cover_the_truth_where_classes_are_small(sizes):
    """Dropping a class that a resample lacks shifts the interval; drawing n of n images makes it too narrow."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.clip(generator.beta(0.5, 2, len(sizes)), 0.02, 0.98)
    covered, shift = 0, []
    for seed in range(300):
        mean = Mean((generator.random(len(labels)) < truth[labels]).astype(float), np.arange(len(labels)), labels)
        replicates = statistics.bootstrap({"x": mean}, len(labels), num_samples=200, seed=seed)["x"]
        low, high = np.percentile(replicates, [2.5, 97.5])
        covered += low <= truth.mean() <= high
        shift.append(replicates.mean() - mean.value)
    assert covered / 300 >= 0.92
    assert abs(np.mean(shift)) < 0.001


def test_value_is_the_statistic_itself():
    mean = Mean(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]))
    assert mean.value == pytest.approx(2 / 3)
    assert mean._replace(group=np.array([0, 0, 2])).value == pytest.approx(0.75)  # class 1 does not occur
    assert np.isnan(Mean(np.array([]), np.array([], dtype=int)).value)


def test_seed_decides_and_order_of_names_does_not():
    values = {name: Mean(np.random.default_rng(i).random(50), np.arange(50)) for i, name in enumerate("ab")}
    settings = {"num_samples": 50, "confidence": 0.9}
    first = statistics.intervals(values, 50, seed=1, **settings)
    assert first == statistics.intervals(dict(reversed(values.items())), 50, seed=1, **settings)
    assert first != statistics.intervals(values, 50, seed=2, **settings)


def test_intervals_agree_with_scipys_bootstrap():
    values = np.random.default_rng(0).random(200) ** 2
    found = statistics.intervals({"x": Mean(values, np.arange(200))}, 200, num_samples=4000, confidence=0.95, seed=0)[
        "x"
    ]
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.004)
    assert found.low < found.value < found.high


def test_captions_of_one_image_do_not_narrow_the_interval():
    """Ten captions that repeat their image's value bring no information: the interval is that of the images alone."""
    values = np.random.default_rng(0).random(100)
    settings = {"num_samples": 500, "confidence": 0.95, "seed": 0}
    alone = statistics.intervals({"x": Mean(values, np.arange(100))}, 100, **settings)["x"]
    repeated = {"x": Mean(values.repeat(10), np.arange(100).repeat(10))}
    assert statistics.intervals(repeated, 100, **settings)["x"] == pytest.approx(alone)


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sample = Mean((generator.random(80) < 0.4).astype(float), np.arange(80))
        low, high = statistics.intervals({"x": sample}, 80, num_samples=200, confidence=0.9, seed=seed)["x"][1:]
        covered += low <= 0.4 <= high
    assert 0.83 <= covered / 200 <= 0.96


def test_paired_test_sees_what_two_intervals_do_not():
    """The same small gain on every hard or easy item: the intervals overlap, the paired difference is certain."""
    generator = np.random.default_rng(0)
    base = generator.random(100)
    refined = base + 0.02 + 0.01 * generator.standard_normal(100)
    settings = {"num_samples": 999, "confidence": 0.95, "seed": 0}
    both = {"base": Mean(base, np.arange(100)), "refined": Mean(refined, np.arange(100))}
    found = statistics.intervals(both, 100, **settings)
    assert found["base"].high > found["refined"].low
    difference = Mean(refined - base, np.arange(100))
    assert statistics.intervals({"x": difference}, 100, **settings)["x"].low > 0
    assert statistics.sign_flips_by_image(difference) < 1e-9


def test_no_difference_has_p_value_one():
    same = Mean(np.zeros(20), np.arange(20))
    assert statistics.intervals({"x": same}, 20, num_samples=99, confidence=0.95, seed=0)["x"] == (0.0, 0.0, 0.0)
    assert statistics.sign_flips_by_image(same) == 1.0


def test_p_values_are_about_uniform_when_nothing_differs():
    generator = np.random.default_rng(1)
    p_values = [statistics.sign_flips(generator.integers(-9, 10, size=60)) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.12
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def pairs(generator, count, shifts):
    """Image minus text of `count` unit pairs for each shift between the modalities, all on the same noise."""
    concept = generator.standard_normal((count, 16))
    image, text = (concept + generator.standard_normal((count, 16)) for _ in range(2))
    axis = np.eye(16)[0]

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return [unit(image + shift * axis) - unit(text - shift * axis) for shift in shifts]


@pytest.mark.parametrize("shifts", [(0.1, 0.4), (0.5, 0.3), (0.2, 0.25)])
def test_change_of_a_distance_covers_that_of_the_whole(shifts):
    """A sample's own distances are inflated by its noise, unequally; plain percentiles cover almost never here."""
    generator = np.random.default_rng(0)
    before, after = (np.linalg.norm(whole.mean(0)) for whole in pairs(generator, 200_000, shifts))
    covered = 0
    for seed in range(150):
        found = statistics.distance_change(
            *pairs(generator, 100, shifts), np.arange(100), num_samples=200, confidence=0.95, seed=seed
        )
        covered += found.low <= after - before <= found.high
    assert covered / 150 >= 0.9


def test_change_of_a_distance_that_does_not_change_is_zero():
    one, other = pairs(np.random.default_rng(0), 50, (0.3, 0.9))
    options = {"unit": np.arange(50), "num_samples": 100, "confidence": 0.95, "seed": 0}
    assert statistics.distance_change(one, one, **options) == (0, 0, 0)
    assert statistics.distance_change(one, other, **options).low > 0
    with pytest.raises(ValueError, match="same pairs"):
        statistics.distance_change(one, other[1:], **options)


def test_copies_of_a_pair_say_no_more_of_a_distance_than_one():
    """Each of 40 pairs ten times: the same change, noise and interval; and as a slow bootstrap over images has it."""
    one, other = pairs(np.random.default_rng(3), 40, (0.3, 0.4))
    options = {"num_samples": 300, "confidence": 0.95, "seed": 0}
    alone = statistics.distance_change(one, other, np.arange(40), **options)
    copied = statistics.distance_change(one.repeat(10, 0), other.repeat(10, 0), np.arange(40).repeat(10), **options)
    assert copied == pytest.approx(alone, abs=1e-12)
    unit = np.arange(40).repeat([1, 2, 3, 1] * 10)  # a mean of pairs counts an image as often as it stands there
    found = statistics.distance_change(one[unit], other[unit], unit, **options | {"num_samples": 3000})
    generator, rows = np.random.default_rng(1), [np.flatnonzero(unit == image) for image in range(40)]
    drawn = [np.concatenate([rows[image] for image in generator.integers(40, size=40)]) for _ in range(3000)]
    sides = [(side[unit].mean(0), np.array([side[unit][draw].mean(0) for draw in drawn])) for side in (one, other)]
    noise = [np.square(draws - mean).sum(1).mean() for mean, draws in sides]
    squares = [np.square(draws).sum(1) - 2 * extra for (_, draws), extra in zip(sides, noise, strict=True)]
    value = [np.sqrt(np.square(mean).sum() - extra) for (mean, _), extra in zip(sides, noise, strict=True)]
    before, after = (np.sqrt(np.maximum(square, 0)) for square in squares)
    low, high = np.percentile(after - before, [2.5, 97.5])
    assert found == pytest.approx((value[1] - value[0], low, high), abs=0.005)


def slow_sign_flips(differences):
    flips = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    sums = flips @ differences.astype(np.float64)
    return (np.abs(sums) >= abs(sums[0]) - 1e-5).mean()


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_equal_all_choices_one_by_one(seed):
    """Captions of an image together, ties that share a place, means of three seeds."""
    generator = np.random.default_rng(seed)
    for differences in (
        generator.integers(-5, 6, size=11),
        generator.integers(-5, 6, size=18),
        generator.integers(-6, 7, size=10) / 6,
        generator.integers(-3, 4, size=10).astype(np.float32) / 3,
    ):
        assert statistics.sign_flips(differences) == pytest.approx(slow_sign_flips(differences))
    for count in (12, 17):  # no common fraction; the more are rounded to a grid
        differences = generator.standard_normal(count)
        assert statistics.sign_flips(differences) == pytest.approx(slow_sign_flips(differences), abs=0.001)
        assert statistics.sign_flips(np.abs(differences)) == pytest.approx(2 / 2**count)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 4), (0, 6), (1, 5), (3, 3), (40, 60), (100, 300)])
def test_test_of_images_with_one_item_each_is_mcnemars(lost, gained):
    """The bootstrap said 0.037 of four against none, where chance alone does it in one case of eight."""
    values = np.array([-1.0] * lost + [1.0] * gained + [0.0] * 50)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    found = statistics.sign_flips_by_image(Mean(values, np.arange(len(values))))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_many_uneven_differences_are_tested_as_a_normal_sum_is():
    """Thousands of differences without a common fraction, where few factors are left to compute: the limit is known."""
    generator = np.random.default_rng(0)
    for count in (500, 4000):
        differences = generator.standard_normal(count) + 2 / np.sqrt(count)
        z = differences.sum() / np.sqrt(np.square(differences).sum())
        assert statistics.sign_flips(differences) == pytest.approx(2 * stats.norm.sf(z), rel=0.01)


@pytest.mark.parametrize("large", [1, 2, 3, 8])
def test_many_small_differences_beside_a_few_large_ones_decide(large):
    """As 200,000 draws of signs have it; where the small ones were rounded away p could be 1e-12."""
    generator = np.random.default_rng(large)
    for _ in range(3):
        small = generator.uniform(2e-6, 8e-6, 40) * generator.choice([-1, 1], 40)
        differences = np.concatenate([generator.uniform(0.1, 0.3, large), small])
        sums = generator.choice([-1.0, 1.0], size=(200_000, len(differences))) @ differences
        slow = (np.abs(sums) >= abs(differences.sum())).mean()
        assert statistics.sign_flips(differences) == pytest.approx(slow, abs=0.01)


@pytest.mark.parametrize(("lost", "gained"), [(10, 90), (50, 450)])
def test_p_values_below_the_rounding_of_the_transform_are_given_as_that(lost, gained):
    """Their truth is 3e-17 and 2e-81; rounding alone gave 2e-15 and 2e-14."""
    differences = np.array([-1.0] * lost + [1.0] * gained)
    assert statistics.sign_flips(differences) == statistics.SMALLEST_P


def test_captions_and_copies_of_one_image_are_no_evidence_of_each_other():
    """Five captions of two images, all better: two coin tosses, not ten."""
    assert statistics.sign_flips_by_image(Mean(np.ones(10), np.repeat([3, 7], 5))) == 0.5


def test_copies_in_a_class_do_not_narrow_the_interval_of_a_class_mean():
    """Every image three times: the interval is that of the images once, about the same value."""
    generator = np.random.default_rng(0)
    values, group = generator.integers(0, 2, 60).astype(float), np.repeat(np.arange(4), 15)
    settings = {"num_samples": 300, "confidence": 0.95, "seed": 0}
    once = statistics.intervals({"x": Mean(values, np.arange(60), group)}, 60, **settings)["x"]
    thrice = Mean(np.tile(values, 3), np.tile(np.arange(60), 3), np.tile(group, 3))
    assert statistics.intervals({"x": thrice}, 60, **settings)["x"] == pytest.approx(once)
    uneven = Mean(np.append(values, values[:15]), np.append(np.arange(60), np.arange(15)), np.append(group, group[:15]))
    found = statistics.intervals({"x": uneven}, 60, **settings)["x"]
    assert found.value == uneven.value
    assert found.high - found.low == pytest.approx(once.high - once.low)


def test_holm_by_hand():
    """0.01 x 4; 0.02 x 3; 0.03 x 2; then 0.04 may not be smaller than the one before."""
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
