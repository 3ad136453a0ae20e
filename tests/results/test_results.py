"""Reading evaluations and pairing them: against slow recomputation from the written arrays."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.evaluate.scoring import headlines
from pipeline_lib.results import folders as results
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from tests import example_results

SETTINGS = Certainty(confidence=0.95, bootstrap_samples=300, seed=0)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    example_results.write(root)
    return Evaluation(root / "data/eval/base"), Evaluation(root / "data/eval/refined")


@pytest.fixture(scope="module")
def comparison(evaluations):
    base, refined = evaluations
    return results.paired(Variant(base), Variant(refined), SETTINGS, sets=["eval"])


def test_headlines_are_recall_at_1_and_ensemble_top_1(evaluations):
    found = {measure.key: measure for measure in Variant(evaluations[1]).headlines("eval")}
    assert list(found) == ["image_to_text_recall_at_1", "text_to_image_recall_at_1", "zero_shot_shape_top1"]
    retrieval = evaluations[1].results["sets"]["eval"]["variants"]["plain"]["retrieval"]
    assert found["image_to_text_recall_at_1"].interval._asdict() == retrieval["image_to_text_recall_at_1"]


def test_every_measure_has_the_name_under_which_evaluation_logs_it(evaluations):
    """One definition, one spelling: headlines and all other shares, as DVC and MLflow have them."""
    for evaluation in evaluations:
        flat = artifacts.read_json(evaluation.directory.with_suffix(".json"))
        for set_name, block in evaluation.all_sets.items():
            measures = {m.key: m for m in Variant(evaluation).measures(set_name)}
            shared = measures.keys() & flat[set_name].keys()
            assert {"zero_shot_shape_top1", "zero_shot_shape_single_top1", "image_to_text_recall_at_5"} <= shared
            assert all(measures[key].interval.value == flat[set_name][key] for key in shared)
            extra = measures.keys() - shared
            assert extra == {"zero_shot_shape_single_mean_per_class", "zero_shot_shape_single_top5"}
            assert [m.key for m in Variant(evaluation).headlines(set_name)] == list(
                headlines(block["variants"]["plain"])
            )


def test_every_measure_is_the_mean_of_its_items(evaluations):
    """In both variants, so that the paired differences are differences of the printed numbers."""
    for name in (results.PLAIN, CENTRED):
        variant = Variant(evaluations[0], name)
        with_items = [measure for measure in variant.measures("eval") if measure.items]
        assert len(with_items) >= 8
        for measure in with_items:
            assert variant.mean(measure).value == pytest.approx(measure.interval.value, abs=1e-6), measure.key


def test_captions_are_resampled_with_their_image(evaluations):
    variant = Variant(evaluations[0])
    recall = next(m for m in variant.measures("eval") if m.key == "text_to_image_recall_at_1")
    images = example_results.SIZES["eval"]
    np.testing.assert_array_equal(
        variant.mean(recall).image_index, np.repeat(np.arange(images), example_results.PER_IMAGE)
    )


def test_differences_and_tests_equal_slow_ones(comparison, evaluations):
    items = [load_file(e.directory / "items/eval.safetensors") for e in evaluations]
    by_key = {row.before.key: row for row in comparison}
    row = by_key["zero_shot_shape_top1"]
    before, after = (i["zero_shot.shape.ensemble.correct"].astype(int) for i in items)
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


def test_probes_are_a_family_of_their_own(evaluations, comparison):
    base, refined = evaluations
    (row,) = results.paired_probes(Variant(base), Variant(refined), SETTINGS, sets=["eval"])
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
        "image_to_text_recall_at_1": "rose",
        "text_to_image_recall_at_1": "rose",
        "zero_shot_shape_top1": "fell",
    }


def test_a_model_against_itself_does_not_move(evaluations):
    same = results.paired(Variant(evaluations[0]), Variant(evaluations[0]), SETTINGS, sets=["eval"])
    assert {row.verdict for row in same} == {"still"}
    assert {row.adjusted_p for row in same if row.before.is_headline} == {1.0}
    assert {tuple(row.difference) for row in same} == {(0.0, 0.0, 0.0)}


def test_p_values_need_no_resamples(evaluations, comparison):
    """However many headlines share Holm's correction: what is certain stays so with ten resamples."""
    few = results.paired(
        Variant(evaluations[0]),
        Variant(evaluations[1]),
        Certainty(confidence=0.95, bootstrap_samples=10, seed=0),
        sets=["eval"],
    )
    p_values = {row.before.key: row.p_value for row in few}
    assert p_values == {row.before.key: row.p_value for row in comparison}
    assert p_values["image_to_text_recall_at_1"] < 1e-4


def test_the_two_must_have_seen_the_same_items(evaluations, tmp_path):
    other = Evaluation(evaluations[1].directory)
    items = dict(other.items("eval"))
    items["image_to_text_hit_at_1"] = items["image_to_text_hit_at_1"][:-1]
    save_file(items, tmp_path / "items.safetensors")
    other.items = lambda name: load_file(tmp_path / "items.safetensors")
    with pytest.raises(UserError, match=r"119 .*same data"):
        results.paired(Variant(evaluations[0]), Variant(other), SETTINGS, sets=["eval"])


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Evaluation(tmp_path / "nowhere")


def test_parameters_hold_the_recipe_that_is_used_and_no_other(tmp_path):
    found = results.read_parameters(example_results.ROOT / "params.yaml")
    assert list(found["recipes"]) == [found["refine"]["recipe"]]
    assert results.flat(found)["refine.seed"] == 0
    assert not {"paths", "runtime", "tracking"} & set(found)


def test_gap_holds_the_printed_distances_and_their_change_on_the_same_pairs(evaluations):
    base, refined = evaluations
    found = results.gap(base, refined, "eval", SETTINGS)
    assert found.base == base.block("eval", "gap")["centroid_distance"]
    assert found.free == base.block("eval", "gap", CENTRED)["centroid_distance"]
    assert found.refined == refined.block("eval", "gap")["centroid_distance"]
    assert found.floor == refined.block("eval", "gap")["centroid_floor"]
    assert found.change.low < found.change.value < found.change.high < 0, "the example's gap narrows"
    for pairs, distance in (
        (results.first_pairs(base, "eval"), found.base),
        (results.centred_pairs(base, "eval"), found.free),
    ):
        assert np.linalg.norm(pairs[0].mean(0) - pairs[1].mean(0)) == pytest.approx(distance, rel=1e-4)
    assert found.against_free.low > 0
    assert results.gap(base, base, "eval", SETTINGS).change == (0, 0, 0)


def test_best_mix_is_the_largest_mean_and_nearest_to_base_among_equals():
    assert results.best_mix([(0.0, 0, 0), (0.5, 2, 1), (1.0, -5, 4)]) == 0.5
    assert results.best_mix([(0.0, 0, 0), (0.5, -1, 1)]) == 0.0


def test_wise_curve_is_measured_against_the_base_in_points(evaluations):
    base, refined = evaluations
    curve = results.wise_curve(base, refined, ["eval"])
    assert [point[0] for point in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve[0] == (0.0, 0.0, 0.0)
    before, after = ({m.key: m.interval.value for m in Variant(e).headlines("eval")} for e in evaluations)
    mixed = refined.results["wise_ft"][1]["sets"]["eval"]
    for found, values in ((curve[2], mixed), (curve[4], after)):
        change = {key: 100 * (values[key] - before[key]) for key in before}
        assert found[1] == pytest.approx(change["zero_shot_shape_top1"])
        assert found[2] == pytest.approx(np.mean([change[f"{d}_recall_at_1"] for d in results.DIRECTIONS]))
    assert results.wise_curve(base, base, ["eval"]) == [], "no sweep"
