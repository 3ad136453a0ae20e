"""Choices on the page, in a comparison and on a model card: read from a project of every published layout."""

from pathlib import Path

import pytest

from pipeline_lib import compare
from pipeline_lib.compare import board
from pipeline_lib.core import artifacts
from pipeline_lib.report import choices, page, tables, verdict, wise_ft
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.wise_ft import wise_curve

SETS = ("crepe", "crepe_pp", "wino", "natural", "mmvp")


@pytest.fixture
def inputs(chosen, monkeypatch):
    monkeypatch.chdir(chosen)
    return read_inputs(Path("params.yaml"))


def rows_of(table):
    return {row.cells[0].text: [str(cell) for cell in row.cells[1:]] for row in table.rows}


def test_headlines_stand_in_the_main_table_and_groups_do_not(inputs):
    table = tables.before_after_table(inputs)
    strong = [row.cells[0].text for row in table.rows if row.kind == "strong"]
    assert strong.count("caption choice") == strong.count("caption choice (ITT)") == 1
    assert strong.count("group score") == 3
    labels = [row.cells[0].text for row in table.rows]
    assert labels.count("text score") == labels.count("image score") == 3
    assert not any("swap_obj" in label or "Relation" in label for label in labels)
    assert "crepe (6 images, 12 choices)" in labels
    headlines = [row for row in inputs.comparison if row.adjusted_p is not None]
    assert [row.before.name for row in headlines if row.before.set_name in SETS] == [
        f"{name}: {label}"
        for name, label in zip(SETS, ("caption choice", "caption choice (ITT)", *["group score"] * 3), strict=True)
    ]
    assert verdict.sentence(inputs)
    summary = report.summary(inputs)
    flat = artifacts.read_json(Path("data/eval/refined.json"))
    assert summary["crepe/caption_choice_accuracy"] == float(f"{flat['crepe']['caption_choice_accuracy']:.4g}")


def test_a_fold_has_every_score_with_its_chance_and_by_group(inputs):
    (fold,) = choices.show_groups(inputs)
    assert [table.header[0] for table in fold.blocks] == [f"{name}, percent" for name in SETS]
    found = {table.header[0].partition(",")[0]: rows_of(table) for table in fold.blocks}
    assert [row[1] for row in found["wino"].values()] == ["16.7"] * 3 + ["25.0"] * 6
    assert found["crepe"].keys() == {"caption choice", "caption choice, add_att", "caption choice, swap_obj"}
    assert [row[:2] for row in found["crepe"].values()] == [["12", "50.0"], ["7", "50.0"], ["5", "50.0"]]
    assert [row[1] for row in found["crepe_pp"].values()] == ["33.3"] * 6
    flat = [artifacts.read_json(Path(f"data/eval/{name}.json"))["mmvp"] for name in ("base", "refined")]
    for label, key in (("image score", "image_score"), ("image score, Orientation", "image_score_Orientation")):
        cells = found["mmvp"][label]
        assert [cell.split(" ")[0] for cell in cells[2:4]] == [page.percent(one[f"image_pairs_{key}"]) for one in flat]
    assert fold.blocks[-1].note.startswith("1 of 4 choices were left out")


def test_the_curve_of_mixes_leaves_choices_out(inputs):
    names = [*SETS, "eval"]
    assert wise_curve(inputs.base, inputs.refined, names) == wise_curve(inputs.base, inputs.refined, ["eval"]) != []
    assert wise_curve(inputs.base, inputs.refined, SETS) == []
    assert wise_ft.show_curve(inputs)


def test_choices_are_neither_searched_nor_measured_for_the_gap(inputs):
    assert inputs.with_captions == list(inputs.gaps) == ["eval"]
    for name in SETS:
        assert set(Variant(inputs.refined).block(name, "gap")) == {"raw_image_norm"}


def test_configurations_are_compared_by_choices_too(chosen, inputs):
    made = board.make_board(compare.group([compare.read_folder("one", chosen)]), chosen / "params.yaml")
    assert made.keys("crepe") == {"caption_choice_accuracy": "caption choice"}
    assert set(made.entries["wino"]["clip_refine"]) == {"image_pairs_group_score"}
