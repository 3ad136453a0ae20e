"""The curve between base and refined against the numbers of its models."""

import numpy as np
import pytest

from pipeline_lib.results.folders import Variant
from pipeline_lib.results.measure import DIRECTIONS, Measure
from pipeline_lib.results.wise_ft import best_mix, wise_curve


def test_best_mix_is_the_largest_mean_and_nearest_to_base_among_equals():
    assert best_mix([(0.0, 0, 0), (0.5, 2, 1), (1.0, -5, 4)]) == 0.5
    assert best_mix([(0.0, 0, 0), (0.5, -1, 1)]) == 0.0


def test_wise_curve_is_measured_against_the_base_in_points(evaluations):
    base, refined = evaluations
    curve = wise_curve(base, refined, ["eval"])
    assert [point[0] for point in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve[0] == (0.0, 0.0, 0.0)
    before, after = ({m.key: m.value for m in Variant(e).headlines("eval")} for e in evaluations)
    mixed = refined.results["wise_ft"][1]["sets"]["eval"]
    for found, values in ((curve[2], mixed), (curve[4], after)):
        change = {key: 100 * (values[key] - before[key]) for key in before}
        assert found[1] == pytest.approx(change["zero_shot_shape_top1"])
        assert found[2] == pytest.approx(np.mean([change[f"{d}_log_rank"] for d in DIRECTIONS]))
    assert wise_curve(base, base, ["eval"]) == [], "no sweep"


def test_headlines_of_other_kinds_are_on_no_axis(evaluations, monkeypatch):
    base, refined = evaluations
    expected = wise_curve(base, refined, ["eval"])
    headlines = Variant.headlines
    choice = Measure("eval", "choice", "caption choice", "choice", 0.5, is_headline=True)
    monkeypatch.setattr(Variant, "headlines", lambda self, name: [*headlines(self, name), choice])
    assert wise_curve(base, refined, ["eval"]) == expected
