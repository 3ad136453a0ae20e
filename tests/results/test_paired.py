"""Two models on the same items: differences, tests and verdicts against slow recomputation from the written arrays."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from pipeline_lib.core.errors import UserError
from pipeline_lib.results import paired, statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import compare_measures, compare_probes
from pipeline_lib.results.statistics import Interval
from tests import example_results


def test_differences_and_tests_equal_slow_ones(comparison, evaluations):
    items = [load_file(e.directory / "items/eval.safetensors") for e in evaluations]
    by_key = {row.before.key: row for row in comparison}
    row = by_key["zero_shot_shape_top1"]
    before, after = (i["zero_shot.shape.ensemble.hit_at_1"].astype(int) for i in items)
    assert row.difference.value == pytest.approx((after - before).mean())
    gained, lost = ((after - before) == 1).sum(), ((after - before) == -1).sum()
    assert row.p_value == pytest.approx(stats.binomtest(int(gained), int(gained + lost)).pvalue)
    row = by_key["text_to_image_recall_at_1"]
    per_caption = items[1]["text_to_image_hit_at_1"].astype(float) - items[0]["text_to_image_hit_at_1"]
    assert row.difference.value == pytest.approx(per_caption.mean())
    per_image = per_caption.reshape(-1, example_results.PER_IMAGE).mean(1)  # the same number of captions each
    error = per_image.std(ddof=1) / np.sqrt(len(per_image))
    assert row.difference.low == pytest.approx(per_image.mean() - 1.96 * error, abs=0.5 * error)
    assert row.difference.high == pytest.approx(per_image.mean() + 1.96 * error, abs=0.5 * error)


def test_holm_covers_the_headlines_and_nothing_else(comparison):
    tested = [row for row in comparison if row.before.is_headline]
    assert [row.adjusted_p for row in tested] == statistics.holm([row.p_value for row in tested])
    assert all(row.p_value is None and row.verdict == "still" for row in comparison if not row.before.is_headline)


def test_probes_are_a_family_of_their_own(evaluations, comparison, settings):
    base, refined = evaluations
    (row,) = compare_probes(Variant(base), Variant(refined), settings, sets=["eval"])
    items = [load_file(e.directory / "items/eval.safetensors") for e in evaluations]
    before, after = (i["linear_probe.shape.correct"].astype(int) for i in items)
    assert len(before) == example_results.SIZES["eval"] // 2, "half of the set trained the probe"
    assert row.difference.value == pytest.approx((after - before).mean())
    assert row.difference.low < row.difference.value < row.difference.high
    gained, lost = ((after - before) == 1).sum(), ((after - before) == -1).sum()
    assert row.p_value == row.adjusted_p == pytest.approx(stats.binomtest(int(gained), int(gained + lost)).pvalue)
    assert row.before.key not in {one.before.key for one in comparison}
    assert Variant(base).mean(row.before).image_index.max() > len(before), "the images keep their numbers in the set"


def test_verdicts_follow_sign_and_significance(comparison):
    verdicts = {row.before.key: row.verdict for row in comparison if row.before.is_headline}
    assert verdicts == {
        "image_to_text_log_rank": "rose",
        "text_to_image_log_rank": "rose",
        "zero_shot_shape_top1": "fell",
    }


def objection_to(verdict, *, value=0.5, chance=0.1, commonest=None, **differences):
    """What is held against a change of a headline whose interval is value ± 0.1, given those of its partners."""
    names = {"class_mean": "agrees_with", "recall": "not_against"}
    measure = Measure("eval", "x", "x", "zero_shot", value, value - 0.1, value + 0.1, chance=chance)
    measure = dataclasses.replace(measure, commonest=commonest, **{names[key]: key for key in differences})
    others = {
        key: (dataclasses.replace(measure, label=key), Interval(sum(ends) / 2, *ends))
        for key, ends in differences.items()
    }
    return paired.objection(verdict, measure, measure, others)


@pytest.mark.parametrize(
    ("verdict", "case", "says"),
    [
        ("rose", {}, ""),
        ("rose", {"value": 0.15}, "it is not measurably above what chance gives"),
        ("rose", {"commonest": 0.45}, "it is not measurably above what always answering the commonest class gives"),
        ("fell", {"value": 0.15}, "it was not measurably above what chance gives"),
        ("still", {"value": 0.15}, ""),
        ("rose", {"class_mean": (0.01, 0.02)}, ""),
        ("rose", {"class_mean": (-0.01, 0.02)}, "class_mean did not rise measurably with it"),
        ("fell", {"class_mean": (-0.01, 0.02)}, ""),
        ("fell", {"class_mean": (0.01, 0.02)}, "class_mean rose"),
        ("rose", {"recall": (-0.01, 0.02)}, ""),
        ("rose", {"recall": (-0.02, -0.01)}, "recall fell"),
        ("fell", {"recall": (0.01, 0.02)}, "recall rose"),
        ("rose", {"chance": None, "value": 0.05}, ""),
    ],
)
def test_what_the_test_finds_counts_only_where_nothing_speaks_against_it(verdict, case, says):
    assert objection_to(verdict, **case) == says


def test_a_model_against_itself_does_not_move(evaluations, settings):
    same = compare_measures(Variant(evaluations[0]), Variant(evaluations[0]), settings, sets=["eval"])
    assert {row.verdict for row in same} == {"still"}
    assert {row.adjusted_p for row in same if row.before.is_headline} == {1.0}
    assert {tuple(row.difference) for row in same} == {(0.0, 0.0, 0.0)}


def test_p_values_need_no_resamples(evaluations, comparison):
    """However many headlines share Holm's correction: what is certain stays so with ten resamples."""
    few = compare_measures(
        Variant(evaluations[0]),
        Variant(evaluations[1]),
        Certainty(confidence=0.95, bootstrap_samples=10, seed=0),
        sets=["eval"],
    )
    p_values = {row.before.key: row.p_value for row in few}
    assert p_values == {row.before.key: row.p_value for row in comparison}
    assert p_values["image_to_text_log_rank"] < 1e-4


def test_the_two_must_have_seen_the_same_items(evaluations, tmp_path, settings):
    other = Evaluation(evaluations[1].directory)
    items = dict(other.items("eval"))
    items["image_to_text_hit_at_1"] = items["image_to_text_hit_at_1"][:-1]
    save_file(items, tmp_path / "items.safetensors")
    other.items = lambda name: load_file(tmp_path / "items.safetensors")
    with pytest.raises(UserError, match=r"119 .*same data"):
        compare_measures(Variant(evaluations[0]), Variant(other), settings, sets=["eval"])
