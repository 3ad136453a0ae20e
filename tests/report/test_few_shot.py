"""The few-shot curves on the page: points against the arrays, the figure's lines, the models against themselves."""

import copy

import numpy as np
import pytest

from pipeline_lib.report import few_shot, page
from pipeline_lib.report.page import Drawing, Table
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.paired import compare_few_shot
from tests.report.test_figures import axes_of

SHOTS = (1, 2, 4, 8, 16)


def shown(inputs):
    _, drawing, table = few_shot.show_curves(inputs)
    assert isinstance(drawing, Drawing)
    assert isinstance(table, Table)
    return drawing.figure, table


def test_the_table_holds_both_models_and_their_paired_difference(written):
    folder, _, inputs = written
    _, table = shown(inputs)
    group, zero, *rows = table.rows
    assert (group.kind, str(group.cells[0])) == ("group", "eval: shape")
    before, after = (e.items("eval") for e in (inputs.base, inputs.refined))
    for row, shots in zip(rows, SHOTS, strict=True):
        assert str(row.cells[0]) == str(shots)
        for place, method in ((1, "gda"), (3, "probe")):
            first, second = (arrays[f"few_shot.shape.{method}.{shots}"].astype(float) for arrays in (before, after))
            assert str(row.cells[place]) == f"{page.percent(first.mean())} → {page.percent(second.mean())}"
            assert row.cells[place + 1].text == page.points(second.mean() - first.mean())
            error = (second - first).std(ddof=1) / np.sqrt(len(first))
            low, high = (float(end.replace("−", "-")) / 100 for end in row.cells[place + 1].interval)
            assert high - low == pytest.approx(2 * 1.96 * error, rel=0.3, abs=0.002)
    assert [str(cell) for cell in zero.cells[1:3]] == [str(cell) for cell in rows[0].cells[1:3]], "one shot is none"
    assert [str(cell) for cell in zero.cells[3:]] == ["–", "–"]
    assert "means over 3 draws" in table.note
    assert "From a few images of each class" in (folder / "report.md").read_text()


def test_the_figure_draws_both_models_from_zero_shot_on(written):
    _, _, inputs = written
    figure, _ = shown(inputs)
    axes = axes_of(figure)
    labels = [f"{model}, {method}" for model in ("base", "refined") for method in ("GDA", "logistic probe")]
    assert [line.get_label() for line in axes.lines] == labels
    assert [len(line.get_xdata()) for line in axes.lines] == [6, 5, 6, 5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", *map(str, SHOTS)]
    arrays = inputs.refined.items("eval")
    means = [100 * arrays[f"few_shot.shape.probe.{shots}"].mean() for shots in SHOTS]
    assert axes.lines[3].get_ydata() == pytest.approx(means)
    assert axes.lines[3].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert axes.get_title() == "eval: shape"


def test_a_model_does_not_differ_from_itself(written):
    _, _, inputs = written
    for evaluation in (inputs.base, inputs.refined):
        rows = compare_few_shot(Variant(evaluation), Variant(evaluation), inputs.certainty, sets=["eval"])
        assert len(rows) == 1 + 2 * len(SHOTS)
        assert {tuple(row.difference) for row in rows} == {(0.0, 0.0, 0.0)}


def test_the_curves_take_no_test_and_join_no_family(written):
    _, _, inputs = written
    assert all((row.p_value, row.adjusted_p, row.verdict) == (None, None, "still") for row in inputs.few_shot)
    assert not {row.before.key for row in inputs.few_shot} & {row.before.key for row in inputs.comparison}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "Classes with fewer: eval: shape at 16 images 4 of 4."),
        ({"short": {"8": 1, "16": 3}, "absent": 1}, "fewer: eval: shape at 16 images 3 of 4, 1 of them none."),
        ({"short": {"8": 0, "16": 0}}, "None of these is a headline or tested."),
    ],
)
def test_classes_with_fewer_images_are_said(written, facts, said):
    """Of 60 images that are drawn from, 15 in each of four classes."""
    _, _, inputs = written
    results = copy.deepcopy(inputs.refined.results)
    inputs.refined.results, kept = results, inputs.refined.results
    results["few_shot"]["eval"]["shape"] |= facts
    try:
        assert shown(inputs)[1].note.endswith(said)
    finally:
        inputs.refined.results = kept
