"""The curve between base and refined: where a mix is chosen, and what is said of it."""

import pytest

from pipeline_lib.report import figures, page, wise_ft
from pipeline_lib.results.wise_ft import best_mix, wise_curve
from tests import example_results


def ringed(monkeypatch, inputs):
    """The mix that the figure marks, and what the page says of it."""
    drawn = []
    real = figures.wise_ft_curve
    monkeypatch.setattr(
        figures, "wise_ft_curve", lambda curves, chosen: drawn.append(chosen) or real(curves, chosen=chosen)
    )
    blocks = wise_ft.show_curve(inputs)
    return drawn[0], next(block.text for block in blocks if hasattr(block, "text")), blocks


def test_the_mix_is_chosen_on_val_and_read_on_eval(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    curves = {name: wise_curve(inputs.base, inputs.refined, [name]) for name in ("eval", "val")}
    best = {name: best_mix(curve) for name, curve in curves.items()}
    assert best["val"] != best["eval"], "else this test could not see where the choice is made"
    chosen, text, blocks = ringed(monkeypatch, inputs)
    assert chosen == best["val"]
    _, zero_shot, retrieval = next(point for point in curves["eval"] if point[0] == chosen)
    assert text.startswith(f"The ringed mix, {chosen:g}, has the best mean of both, chosen on val. On eval it gives ")
    assert f"{page.points(zero_shot / 100)} points zero-shot and {page.points(retrieval / 100)} points retr" in text
    table = blocks[-1].blocks[0]
    assert [row.cells[0].text for row in table.rows] == ["0", "0.25", "0.5", "0.75", "1"]
    gaps = [float(row.cells[3].text) for row in table.rows]
    assert gaps == sorted(gaps, reverse=True), "the example's gap narrows with the mix"


@pytest.mark.parametrize(("gone", "kind"), [("zero_shot", "retrieval"), ("log_rank", "zero-shot accuracy")])
def test_the_mix_is_chosen_on_whatever_val_measures(project, monkeypatch, gone, kind):
    """A set of captions has no classes: its part `val` chooses by retrieval, and the evaluation sets by nothing."""
    inputs = example_results.read_report_inputs(project, monkeypatch)
    for evaluation in (inputs.base, inputs.refined):
        block = evaluation.results["selection"]["val"]["variants"]["plain"]
        block["measures"] = [measure for measure in block["measures"] if measure["kind"] != gone]
    curve = wise_curve(inputs.base, inputs.refined, ["val"])
    column = 1 if gone == "log_rank" else 2
    assert all(point[3 - column] is None for point in curve)
    best = max(curve, key=lambda point: (point[column], -point[0]))[0]
    chosen, text, _ = ringed(monkeypatch, inputs)
    assert chosen == best_mix(curve) == best
    assert f"{kind} than the base" in text if best == 0 else f"has the best {kind}, chosen on val" in text


def test_no_mix_is_named_where_there_is_nothing_to_choose_it_on(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    for evaluation in (inputs.base, inputs.refined):
        evaluation.results["selection"] = {}
    chosen, text, _ = ringed(monkeypatch, inputs)
    assert chosen is None
    assert text.startswith(
        "No mix is named the best: no other part measures zero-shot or retrieval to choose it by, and"
    )
    assert "eval should judge it, not choose" in text


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (0.0, "No mix has a better mean of both than the base itself (ringed), chosen on val."),
        (
            0.5,
            "The ringed mix, 0.5, has the best mean of both, chosen on val. On eval it gives −1.0 points zero-shot and "
            "+1.5 points retrieval against base. `python -m pipeline_lib.export` with `--mix 0.5` writes",
        ),
        (1.0, "The refined model itself (ringed) has the best mean of both, chosen on val: on eval +2.0 points zero-"),
    ],
)
def test_a_mix_that_is_no_mix_is_called_what_it_is(chosen, says):
    curve = [(0.0, 0.0, 0.0), (0.5, -1.0, 1.5), (1.0, 2.0, 2.0)]
    assert wise_ft._chosen_mix("eval", curve, chosen, "mean of both", "val").startswith(says)
