"""Gain against loss: coordinates against the board's own numbers and a slow bootstrap, axes by kind, lines by rate."""

import copy
import dataclasses

import numpy as np
import pytest

from pipeline_lib import compare
from pipeline_lib.compare import trade_off
from pipeline_lib.report.page import Drawing
from pipeline_lib.results import statistics
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.wise_ft import wise_curve
from tests import example_results

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        example_results.make_project(root / str(seed), seed=seed)
    return root


@pytest.fixture
def candidates(folders):
    return [compare.read_folder(str(seed), folders / str(seed)) for seed in SEEDS]


def board_of(candidates, folders):
    return compare.make_board(compare.group(candidates), folders / "0/params.yaml")


@pytest.fixture
def board(candidates, folders):
    return board_of(candidates, folders)


def places(board, names):
    short, _ = trade_off._short_names(board.ranked, [])
    return {place.label: place for place in trade_off._places(board, names, short)}


def test_coordinates_are_means_over_the_headlines_of_each_axis(board):
    found = places(board, ["eval"])
    for label, by_key in board.entries["eval"].items():
        by_axis = {}
        for entry in by_key.values():
            by_axis.setdefault(trade_off.axis(entry.before), []).append(100 * np.array(entry.changes))
        seeds = [np.mean(by_axis[one], axis=0) for one in ("zero-shot", "retrieval")]
        np.testing.assert_allclose(found[label].point, np.mean(seeds, axis=1), atol=1e-4)
        np.testing.assert_allclose(found[label].seeds, np.transpose(seeds), atol=1e-4)
    assert len(found["clip_refine"].seeds) == len(SEEDS)
    assert found["mean-centred"].gap == pytest.approx(
        board.bases[""].results["sets"]["eval"]["variants"]["mean_centred"]["gap"]["centroid_distance"]
    )


def test_intervals_equal_a_slow_bootstrap_over_images(candidates, folders):
    """An image drawn twice counts twice in every headline, with all its captions."""
    board = board_of(candidates[:1], folders)
    [group] = board.groups
    size, settings = example_results.SIZES["eval"], board.settings
    sums = {"zero-shot": np.zeros(settings.bootstrap_samples), "retrieval": np.zeros(settings.bootstrap_samples)}
    headlines = list(Variant(group.candidates[0].refined).headlines("eval"))
    counts = np.concatenate(list(statistics.resample_counts(size, settings.bootstrap_samples, settings.seed)))
    for measure in headlines:
        share = sum(trade_off.axis(one) == trade_off.axis(measure) for one in headlines)
        before, after = (Variant(one).mean(measure) for one in (group.candidates[0].base, group.candidates[0].refined))
        for number, drawn in enumerate(counts):
            change = np.average(after.values - before.values, weights=drawn[before.image_index])
            sums[trade_off.axis(measure)][number] += 100 * change / share
    found = places(board, ["eval"])[group.label]
    for interval, one in ((found.zero_shot, "zero-shot"), (found.retrieval, "retrieval")):
        np.testing.assert_allclose(interval[1:], np.percentile(sums[one], [2.5, 97.5]), atol=1e-6)


def test_mixes_are_the_mean_curve_of_the_seeds_and_end_at_the_mark(board, candidates):
    found = places(board, ["eval"])["clip_refine"]
    curves = [wise_curve(one.base, one.refined, ["eval"]) for one in candidates]
    np.testing.assert_allclose(found.mixes, np.mean([[p[1:] for p in curve] for curve in curves], axis=0))
    assert found.mixes[0] == (0, 0)
    np.testing.assert_allclose(found.mixes[-1], found.point, atol=1e-4)
    candidates[1].refined.results["wise_ft"] = []
    assert places(board, ["eval"])["clip_refine"].mixes == ()


def test_evaluation_sets_and_the_part_to_choose_on_are_a_panel_each(board):
    drawing, fold = trade_off.show_trade_off(board)
    assert isinstance(drawing, Drawing)
    assert len(drawing.figure.panels) == len(fold.blocks) == 2
    assert [table.header[0] for table in fold.blocks] == ["eval", "val (to choose on)"]
    assert "retrieval is the mean of image → text log rank, text → image log rank." in drawing.figure.caption


def with_rate(candidate, name, rate, **changes):
    """The candidate as another configuration, its parameters changed."""
    parameters = copy.deepcopy(candidate.parameters)
    parameters["refine"] |= {"learning_rate": rate, **changes}
    return dataclasses.replace(candidate, name=name, parameters=parameters)


def test_configurations_that_differ_in_the_rate_alone_are_joined_in_its_order(candidates, folders):
    rates = {"middle": 2e-5, "low": 1e-5, "high": 1e-4}
    made = [with_rate(candidates[0], name, rate) for name, rate in rates.items()]
    other = with_rate(candidates[0], "other", 5e-5, recipe="hycd")
    board = board_of([*made, other], folders)
    joined = trade_off._by_rate(board.ranked)
    assert joined == [[f"clip_refine, learning_rate {rate}" for rate in (1e-05, 2e-05, 0.0001)]]
    names, said = trade_off._short_names(board.ranked, joined)
    assert [names[label] for label in joined[0]] == ["lr 1e-05", "lr 2e-05", "clip_refine, lr 0.0001"]
    assert names["hycd, learning_rate 5e-05"] == "hycd"
    assert said == " The learning rate is 5e-05 where none is named."
    more = board_of([*made, other, with_rate(candidates[0], "more", 3e-5, recipe="rafa")], folders)
    names, said = trade_off._short_names(more.ranked, trade_off._by_rate(more.ranked))
    assert (names["hycd, learning_rate 5e-05"], said) == ("hycd, lr 5e-05", "")


def test_one_kind_of_headlines_makes_no_plane(tmp_path):
    example_results.make_project(tmp_path, with_task=False)
    board = compare.make_board(compare.group([compare.read_folder("x", tmp_path)]), tmp_path / "params.yaml")
    assert trade_off.show_trade_off(board) == ()


def test_a_headline_without_an_axis_is_left_out_and_named(board, monkeypatch):
    """Here zero-shot's axis is taken away and given to one of the two retrieval measures' kind."""
    monkeypatch.setattr(trade_off, "axis", lambda m: {"zero_shot": "zero-shot"}.get(m.kind, DIRECTION[m.direction]))
    drawing, _ = trade_off.show_trade_off(board)
    assert "retrieval is the mean of image → text log rank; left out: text → image log rank." in drawing.figure.caption


DIRECTION = {"": None, "image_to_text": "retrieval", "text_to_image": None}
