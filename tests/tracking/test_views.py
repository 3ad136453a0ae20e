"""The table that MLflow's page shows: columns for what is measured, and the report's few numbers."""

import json

import pytest

from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.results.folders import Variant
from pipeline_lib.tracking import views
from tests import example_results
from tests.tracked_project import (
    change,
    client_of,
    do,
    make_project,
    runs_of,
)


def test_the_table_of_rows_comes_with_columns_that_grow_with_what_is_measured(tmp_path):
    """MLflow's page shows no number until one picks it, or a saved view does."""
    params = make_project(tmp_path)
    do("report", params, set__recall=0.1, set__recall_difference=0.01, verdict="Better.")
    change(params, "recipe: clip_refine", "recipe: hycd")
    do("report", params, other__top1=0.1, set__recall=0.2)
    client = client_of(tmp_path)
    tags = client.get_experiment_by_name("clip-refine").tags
    view = json.loads(tags["mlflow.sharedViewState.configurations"])
    state = json.loads(view["state"])
    assert (view["name"], state["searchFilter"]) == ("Configurations", "tags.kind = 'pipeline'")
    columns = state["selectedColumns"]
    assert columns[:3] == ["metrics.`set/recall`", "metrics.`other/top1`", "tags.`verdict`"]
    assert len(columns) == len(set(columns))
    rows = runs_of(client, "pipeline")
    for name in (column.split("`")[1] for column in columns):  # each is one that some row fills
        assert any(name in {**row.data.tags, **row.data.params, **row.data.metrics} for row in rows)
    assert views.configurations(tags, ["set/recall"], 0) == {}
    assert views.configurations(tags, [f"set/{'x' * 100}{i}" for i in range(50)], 0) == {}  # MLflow takes 5000 letters


def test_a_row_of_the_table_is_the_verdict_the_headlines_and_the_gap(tmp_path, monkeypatch):
    """Each headline with its change, recomputed here from the items, and a p-value; four digits, no more numbers."""
    example_results.make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    inputs = read_inputs(tmp_path / "params.yaml")
    found = report.summary(inputs)
    items = [e.items("eval") for e in (inputs.base, inputs.refined)]
    top = [(one["zero_shot.shape.ensemble.prediction"] == one["zero_shot.shape.label"]).mean() for one in items]
    assert found["eval/zero_shot_shape_top1"] == pytest.approx(top[1], rel=1e-3)
    assert found["eval/zero_shot_shape_top1_difference"] == pytest.approx(top[1] - top[0], rel=1e-3, abs=1e-9)
    assert 0 < found["eval/image_to_text_log_rank_adjusted_p"] <= 1
    gap = [Variant(e).block("eval", "gap")["centroid_distance"] for e in (inputs.base, inputs.refined)]
    assert found["eval/centroid_distance_difference"] == pytest.approx(gap[1] - gap[0], rel=1e-3)
    assert found["verdict"] == report.sentence(inputs)
    headlines = [row for row in inputs.comparison if row.adjusted_p is not None]
    assert len(found) == 3 * len(headlines) + 3
    numbers = [value for value in found.values() if not isinstance(value, str)]
    assert numbers == [float(f"{value:.4g}") for value in numbers]  # four digits, as a table can show them


def test_five_headlines_stand_before_the_sentence_on_a_page_of_1400_pixels():
    """The page's own columns, its frame and the names of runs take 635 of them."""
    names = [f"{part}/zero_shot_category_top1" for part in "abcde"]
    more = [f"{name}{ending}" for name in names for ending in ("_difference", "_adjusted_p")]
    view = views.configurations({}, [*more, *names, "a/centroid_distance"], 0)["mlflow.sharedViewState.configurations"]
    state = json.loads(json.loads(view)["state"])
    columns = state["columnOrder"]
    before = columns[: columns.index("tags.`verdict`")]
    assert before == [f"metrics.`{name}`" for name in names]
    assert 635 + sum(state["columnWidths"][column] for column in before) <= 1400


def test_addresses_open_the_part_of_the_page_that_is_for_training():
    assert views.address("http://x", "7", "configurations") == (
        "http://x/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=configurations"
    )
    assert "compareRunsMode=CHART" in views.address("http://x", "7", "curves", charts=True)
