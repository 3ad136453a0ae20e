"""The tables against the files and arrays of the evaluations."""

import copy
import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline_lib.report import page, tables, verdict
from pipeline_lib.report import run as report
from pipeline_lib.report.page import Table
from pipeline_lib.results.statistics import Mean
from tests import example_results


def test_probes_stand_beside_the_headlines_and_are_no_headlines(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    (row,) = inputs.probes
    assert row.before.name not in [one.before.name for one in inputs.comparison]
    (table,) = [block for block in tables.probe_tables(inputs) if isinstance(block, Table)]
    cells = [str(cell) for cell in table.rows[0].cells]
    before, after = (
        e.results["linear_probe"]["eval"]["shape"]["measure"]["value"] for e in (inputs.base, inputs.refined)
    )
    assert cells[0] == "eval: shape"
    assert cells[1].startswith(page.percent(before))
    assert cells[2].startswith(page.percent(after))
    assert cells[3].startswith(page.points(after - before))
    assert verdict.probe_verdict(inputs.probes) in page.to_markdown(report.compose_page(inputs))


def test_class_means_carry_paired_intervals(written):
    """Means over classes resample images too; their difference is that of the printed numbers."""
    _, _, inputs = written
    row = next(row for row in inputs.comparison if row.before.key == "zero_shot_shape_mean_per_class")
    assert row.difference.value == pytest.approx(row.after.value - row.before.value, abs=1e-6)
    assert row.difference.low < row.difference.value < row.difference.high
    labels = inputs.base.items("eval")["zero_shot.shape.label"]
    hits = inputs.base.items("eval")["zero_shot.shape.ensemble.hit_at_1"]
    assert Mean(hits, np.arange(len(hits)), labels).value == pytest.approx(
        np.mean([hits[labels == label].mean() for label in np.unique(labels)])
    )


def test_what_has_no_value_for_a_headline_has_no_mean_and_stands_last(written):
    """The commonest class is no answer to a search: a mean without those headlines would be compared with others'."""
    _, _, inputs = written
    (table,) = tables.rivals_table(inputs)
    names, means = ([row.cells[place].text for row in table.rows] for place in (0, -1))
    assert {"refined", "base", "mean-centred", "chance"} == set(names[:4])
    assert (names[4], means[4]) == ("the commonest class", "–")
    assert "–" not in means[:4]


def test_what_only_the_refined_model_has_stands_in_the_details(written):
    """Such as the calibration error at the base's logit scale."""
    _, _, inputs = written
    refined = copy.deepcopy(inputs.refined.results)
    stored = refined["sets"]["eval"]["variants"]["plain"]["measures"]
    stored.append({**next(one for one in stored if one["key"].endswith("_ece")), "label": "at the base's scale"})
    inputs = dataclasses.replace(inputs, refined=copy.copy(inputs.refined))
    vars(inputs.refined)["results"] = refined
    rows = {row.cells[0].text: row for row in tables.detail_tables(inputs)[0].blocks[0].rows}
    label = next(name for name in rows if "at the base's scale" in name)
    assert [cell.text == "–" for cell in rows[label].cells[1:]] == [True, True, False]


def test_worst_classes_come_with_what_they_are_taken_for(written):
    _, _, inputs = written
    table = next(iter(tables.worst_classes(inputs, "eval")))
    shares = [float(row.cells[3].text) for row in table.rows]
    assert shares == sorted(shares)
    assert re.search(r"\w+ \(\d+\)", table.rows[0].cells[4].text)


def test_shifts_of_a_set_stand_below_it_with_their_mean(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    assert tables.shift_tables(inputs) == ()
    declared = {"evaluation": {"eval": {"shift_of": "eval"}, "other": {"shift_of": None}, "third": {}}}
    inputs = dataclasses.replace(inputs, parameters={**inputs.parameters, "data": declared})
    (found,) = inputs.shifts
    named = [
        dataclasses.replace(found.source, before=dataclasses.replace(found.source.before, set_name=name, value=value))
        for name, value in (("sketch", 0.5), ("art", 0.25))
    ]
    shown = SimpleNamespace(shifts=[dataclasses.replace(found, shifts=named)], certainty=inputs.certainty)
    (table,) = tables.shift_tables(shown)
    assert table.header[0] == "Shifts of eval, zero-shot shape top-1, %"
    assert [row.cells[0].text for row in table.rows] == ["eval", "sketch", "art", "mean of 2 shifts"]
    mean = table.rows[-1].cells
    assert (mean[1].text, mean[3].text) == ("37.5", page.points(found.mean.value))
    assert mean[3].interval == (page.points(found.mean.low), page.points(found.mean.high))
    (single,) = tables.shift_tables(inputs)
    assert [row.cells[0].text for row in single.rows] == ["eval", "eval"], "the mean of one is that one"


def test_known_answers_stand_with_the_data_and_a_missed_one_comes_first(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    assert len(tables.data_table(inputs)) == 2  # the sets, and the texts that are cut
    row = {"set": "eval", "metric": "recall_at_1", "value": 0.5, "expected": 0.51, "tolerance": 0.02, "source": "a"}
    inputs.base.results["known_answers"] = {"met": [row], "missed": []}
    assert [block.kind for block in tables.data_table(inputs)] == ["table"] * 3
    inputs.base.results["known_answers"]["missed"] = [row | {"expected": 0.9, "source": "published: b"}]
    *_, warning, table = tables.data_table(inputs)
    assert warning.text.startswith("**The base model misses 1 of 2 known scores**")
    assert [[str(cell) for cell in one.cells] for one in table.rows] == [
        ["eval: recall at 1", "0.5000", "0.9000 ± 0.02", "missed", "published: b"],
        ["eval: recall at 1", "0.5000", "0.5100 ± 0.02", "met", "a"],
    ]
