"""The verdict against cases worked by hand."""

import dataclasses
import re

import pytest

from pipeline_lib.report import page, tables, verdict
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.gap import Gap
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Paired
from pipeline_lib.results.statistics import Interval


def paired(verdict, p=0.5, **changes):
    measure = Measure("eval", "R@1", "R@1", "recall", 0.2, 0.1, 0.3, is_headline=True)
    measure = dataclasses.replace(measure, **changes)
    return Paired(measure, measure, Interval(0.0, -0.1, 0.1), p, p, verdict)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("rose", "still"), "**it wins**, measurably ahead on eval: R@1 and behind on none."),
        (("fell", "still"), "**it loses**, measurably behind on eval: R@1 and ahead on none."),
        (("rose", "fell"), "**it wins some and loses some**, ahead on eval: R@1, behind on eval: R@1."),
        (("still", "still"), "**no measurable difference** on any of the 2 headlines."),
        (("rose",) * 5, "**it wins**, measurably ahead on 5 of 5 headlines and behind on none."),
    ],
)
def test_accuracy_against_mean_centring(verdicts, expected):
    assert verdict.accuracy_verdict([paired(kind) for kind in verdicts]) == expected


@pytest.mark.parametrize(
    ("base", "free", "refined", "change", "against_free", "says"),
    [
        (0.8, 0.1, 0.05, (-0.8, -0.7), (-0.06, -0.04), "**narrowed**: **beats it on the gap**; on accuracy,"),
        (0.8, 0.1, 0.5, (-0.4, -0.2), (0.3, 0.5), "**narrowed**: **does not beat it on the gap** and must win"),
        (0.8, 0.1, 0.05, (-0.8, -0.7), (-0.06, 0.01), "**narrowed**: **does not beat it on the gap**"),
        (0.1, 0.1, 0.3, (0.1, 0.3), (0.1, 0.3), "**widened**: **does not beat it on the gap**"),
        (0.1115, 0.1407, 0.133, (0.01, 0.03), (-0.02, -0.01), "**widened**: **does not beat it on the gap**"),
        (0.1115, 0.1407, 0.1, (-0.02, 0.01), (-0.06, -0.03), "**did not change measurably**: **does not beat it"),
    ],
)
def test_gap_follows_its_interval_and_is_held_against_base_and_free_baseline(
    base, free, refined, change, against_free, says
):
    intervals = [Interval(sum(ends) / 2, *ends) for ends in (change, against_free)]
    gap = Gap("eval", base, refined, free, 0.07, *intervals)
    text = verdict.gap_verdict(gap, [paired("still")], Certainty(confidence=0.95, bootstrap_samples=100, seed=0))
    moved, beats = re.fullmatch(r"(\*\*.*\*\*): (.*)", says).groups()
    assert text.startswith(f"The gap on eval {moved}: centroid distance {page.number(base)} → {page.number(refined)};")
    assert f"({page.level(0.95)}: {tables.signed(change[0])} to {tables.signed(change[1])})" in text
    assert "Two samples of one distribution would lie 0.070 apart." in text
    assert f"brings it to {page.number(free)}, so refinement {beats}" in text


def test_gap_without_a_free_baseline_is_still_told():
    change = Interval(-0.1, -0.2, -0.05)
    text = verdict.gap_verdict(
        Gap("eval", 0.3, 0.2, None, 0.07, change, None), [], Certainty(confidence=0.95, bootstrap_samples=100, seed=0)
    )
    assert text.startswith("The gap on eval **narrowed**: centroid distance 0.300 → 0.200;")
    assert "free" not in text
    assert text.endswith("0.070 apart.")


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ((), ""),
        (("still",), "it **did not move measurably** on the one task."),
        (("still", "still"), "it **did not move measurably** on any of 2 tasks."),
        (("fell", "still"), "it **fell** on eval: kind 0 (−1.0 points), did not move measurably on 1 more."),
        (("fell", "rose"), "it **fell** on eval: kind 0 (−1.0 points), **rose** on eval: kind 1 (−1.0 points)."),
    ],
)
def test_what_the_probe_says(verdicts, says):
    rows = [paired(one, kind="linear_probe", task=f"kind {i}") for i, one in enumerate(verdicts)]
    rows = [dataclasses.replace(row, difference=Interval(-0.01, -0.02, 0.0)) for row in rows]
    assert verdict.probe_verdict(rows).endswith(says)
