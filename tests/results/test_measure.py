"""A measure says what it is: a new one that scoring writes is compared, tested, shown and logged with no other edit."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats

from pipeline_lib.core import artifacts
from pipeline_lib.evaluate import scoring
from pipeline_lib.evaluate.measured import Measured
from pipeline_lib.report import page, tables
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.results import statistics
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import item_differences
from pipeline_lib.results.wise_ft import wise_curve
from tests import example_results

EXAMPLE = Measure("eval", "key", "label", "zero_shot", 0.0, 0.0, 0.5, is_tested=True, chance=0.1, items="b", task="t")


def test_what_is_stored_is_read_back():
    assert Measure.read("eval", EXAMPLE.stored()) == EXAMPLE
    assert Measure.read("val", EXAMPLE.stored()).name == "val: label"


def test_only_what_differs_from_the_default_is_stored():
    assert set(EXAMPLE.stored()) == {
        "key",
        "label",
        "kind",
        "value",
        "low",
        "high",
        "is_tested",
        "chance",
        "items",
        "task",
    }


def test_an_interval_is_asked_for_only_where_there_is_one():
    assert EXAMPLE.interval == (0.0, 0.0, 0.5)
    without = dataclasses.replace(EXAMPLE, low=None, high=None)
    assert not without.has_interval
    with pytest.raises(ValueError, match="eval: label has no interval"):
        _ = without.interval


def test_every_measure_has_the_name_under_which_evaluation_logs_it(evaluations):
    """One definition, one spelling, as DVC and MLflow have them."""
    for evaluation in evaluations:
        flat = artifacts.read_json(evaluation.directory.with_suffix(".json"))
        for set_name in evaluation.all_sets:
            variant = Variant(evaluation)
            measures = [*variant.measures(set_name), *variant.probes(set_name), *variant.few_shot(set_name)]
            logged = {measure.key: measure.value for measure in measures if measure.is_metric}
            assert {"zero_shot_shape_top1", "zero_shot_shape_single_top1", "image_to_text_recall_at_5"} <= set(logged)
            assert logged.items() <= flat[set_name].items()
            rest = {measure.key for measure in measures if not measure.is_metric and measure.kind != "few_shot"}
            assert rest == {f"zero_shot_shape_single_{score}" for score in ("mean_per_class", "top5", "ece")} | (
                {"zero_shot_shape_temperature"} if set_name in evaluation.sets else set()
            )
            curves = [measure.key for measure in measures if measure.is_metric and measure.kind == "few_shot"]
            assert curves == (["few_shot_shape_gda_16"] if set_name in evaluation.sets else [])


# ---- a new measure ----


def more_measures(embedded, settings, means=None, watch=None, real=scoring.score):
    """What evaluation scores, one recall and one zero-shot score more, both headlines."""
    block, items = real(embedded, settings, means, watch)
    found = {one.measure.key: one for one in block["measures"]}
    recall, top1 = found["text_to_image_recall_at_10"], found["zero_shot_shape_top1"]
    misses = (top1.mean.values == 0).astype(np.uint8)
    new = [
        Measured(
            dataclasses.replace(
                recall.measure, key="caption_search", label="search by caption", is_headline=True, is_tested=True
            ),
            recall.mean,
        ),
        Measured(
            dataclasses.replace(
                top1.measure,
                key="misses",
                label="zero-shot misses",
                score="misses",
                value=misses.mean(),
                items="misses",
                agrees_with="",
            ),
            top1.mean._replace(values=misses.astype(float)),
        ),
    ]
    return {**block, "measures": [*block["measures"], *new]}, {**items, "misses": misses}


@pytest.fixture(scope="module")
def with_more(tmp_path_factory):
    """The example project as evaluation writes it when scoring measures more; nothing else is changed."""
    root = tmp_path_factory.mktemp("more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", more_measures)
        example_results.write_params(root)
        example_results.fill_project(root)
    return root


def test_a_new_measure_is_logged_plain_and_as_a_headline_mean_centred(with_more):
    for model in ("base", "refined"):
        numbers = artifacts.read_json(with_more / f"data/eval/{model}.json")["eval"]
        assert {"caption_search", "misses", "mean_centred_caption_search", "mean_centred_misses"} <= set(numbers)
        assert numbers["caption_search"] == numbers["text_to_image_recall_at_10"]


def test_a_new_measure_takes_the_test_that_it_names(with_more, monkeypatch):
    """Sign flips by image of the recall, and of the accuracy, where they are McNemar's; from the written arrays."""
    monkeypatch.chdir(with_more)
    inputs = read_inputs(with_more / "params.yaml")
    rows = {row.before.key: row for row in inputs.comparison}
    before, after = (load_file(e.directory / "items/eval.safetensors") for e in (inputs.base, inputs.refined))
    hits = "text_to_image_hit_at_10"
    by_image = np.bincount(before["text_image_index"], after[hits].astype(float) - before[hits])
    assert rows["caption_search"].p_value == pytest.approx(statistics.sign_flips(by_image))
    changed = after["misses"].astype(int) - before["misses"]
    mcnemar = stats.binomtest(int((changed > 0).sum()), int((changed != 0).sum())).pvalue
    assert rows["misses"].p_value == pytest.approx(mcnemar)
    tested = [row for row in inputs.comparison if row.before.is_headline]
    assert len(tested) == 5
    assert [row.adjusted_p for row in tested] == statistics.holm([row.p_value for row in tested])
    centred = {row.before.key: row for row in inputs.against_centring}
    assert centred["misses"].p_value is not None
    difference = item_differences(Variant(inputs.base, CENTRED), Variant(inputs.refined), rows["misses"].before)
    assert difference.value == pytest.approx(centred["misses"].difference.value)


def test_a_new_measure_stands_in_every_table(with_more, monkeypatch):
    monkeypatch.chdir(with_more)
    inputs = read_inputs(with_more / "params.yaml")
    main, (everything, *_) = tables.before_after_table(inputs), tables.detail_tables(inputs)
    for label in ("search by caption", "zero-shot misses"):
        (row,) = [row for row in main.rows if row.cells[0].text == label]
        assert row.kind == "strong"
        assert row.cells[-1].text, "a headline carries its p-value"
        assert f"{label}, %" in [row.cells[0].text for row in everything.blocks[0].rows]
    assert "zero-shot misses" in page.to_terminal(main)


def test_a_new_headline_counts_by_its_kind(with_more, evaluations):
    """In the curve between base and refined: the mean of each axis covers it."""
    few, more = evaluations, [Evaluation(with_more / "data/eval" / name) for name in ("base", "refined")]
    assert wise_curve(*more, ["eval"])[1][0] == wise_curve(*few, ["eval"])[1][0] == 0.25
    changes = {
        m.key: 100 * (after.value - m.value)
        for m, after in zip(*(Variant(e).headlines("eval") for e in more), strict=True)
    }
    _, zero_shot, retrieval = wise_curve(*more, ["eval"])[-1]
    assert zero_shot == pytest.approx(np.mean([changes["zero_shot_shape_top1"], changes["misses"]]))
    searches = ("image_to_text_log_rank", "text_to_image_log_rank", "caption_search")
    assert retrieval == pytest.approx(np.mean([changes[key] for key in searches]))
