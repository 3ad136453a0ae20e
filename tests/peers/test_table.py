"""Ratios are those of neighbouring turns; a missed goal is said to be; rows outlive the run that measured them."""

import json

import numpy as np
import pytest

from pipeline_lib import model
from tests.peers.inputs import captions
from tests.peers.sides import Used
from tests.peers.table import Table, alternate


def test_sides_take_turns_and_the_first_round_does_not_count():
    turns = []

    def side(name):
        return lambda: turns.append(name) or Used(len(turns), 0.0)

    assert alternate(2, side("a"), side("b")) == [[Used(3, 0.0), Used(5, 0.0)], [Used(4, 0.0), Used(6, 0.0)]]
    assert "".join(turns) == "ababab"


def test_a_ratio_is_the_median_over_turns_with_its_spread_and_a_missed_goal_says_so(tmp_path):
    table = Table(tmp_path / "found.json", {"batch": 16})
    table.compare("step", 2.0, [Used(8, 9), Used(9, 9), Used(2, 9)], [Used(4, 3), Used(3, 3), Used(2, 3)], "note")
    row = json.loads((tmp_path / "found.json").read_text())["rows"]["step"]
    assert (row["median"], row["min"], row["max"], row["n"], row["by_the_clock"]) == (2.0, 1.0, 3.0, 3, 3.0)
    assert row["met"]
    table.add("runs", [1.2], 1.0, "note", at_most=True)
    assert "| ≤ 1.0 | **missed** |" in table.line("runs")


@pytest.mark.parametrize(("settings", "kept"), [({"batch": 16}, ["step"]), ({"batch": 8}, [])])
def test_rows_of_the_same_settings_are_kept_and_others_are_not(tmp_path, settings, kept):
    Table(tmp_path / "found.json", {"batch": 16}).add("step", [1.0], 1.0, "note")
    assert list(Table(tmp_path / "found.json", settings).rows) == kept


def test_captions_are_as_long_as_flickr8ks(tiny_clip):
    clip = model.load(tiny_clip)
    texts = captions(192, np.random.default_rng(0))
    lengths = clip.text_lengths(clip.tokenize(texts))
    assert len(set(texts)) == 192
    assert 14 <= float(lengths.float().mean()) <= 16
    assert int(lengths.max()) == 39
