"""A peer works when it is called, and says what went wrong; open_clip reads the project's tars as they are."""

import sys
import time

import pytest

from tests.bench.inputs import Used
from tests.conftest import run_stage
from tests.peers import sides, training
from tests.peers.inputs import Sizes, World
from tests.tiny_project import make_project

COUNTER = """
import json, sys
for number, line in enumerate(sys.stdin):
    if number == 2:
        raise SystemExit("the third time is too much")
    print(json.dumps({"cpu": number, "wall": 2 * number, "said": line.strip()}), flush=True)
"""


@pytest.fixture
def counter(tmp_path, monkeypatch):
    (tmp_path / "counter.py").write_text(COUNTER)
    monkeypatch.setattr(sides, "PYTHON", sys.executable)
    monkeypatch.setattr(sides, "SCRIPTS", tmp_path)
    with sides.Peer("counter", threads=1, folder=tmp_path) as peer:
        yield peer


def test_a_peer_does_a_unit_each_time_it_is_called(counter):
    assert counter() == {"cpu": 0, "wall": 0, "said": "go"}
    assert counter.used() == Used(1, 2)
    assert 0 < counter.gigabytes() < 1


def test_what_a_peer_died_of_is_said(counter):
    counter(), counter()
    with pytest.raises(RuntimeError, match="the third time is too much"):
        counter()


def test_sleeping_takes_time_and_no_cpu():
    used = sides.in_this_process(lambda: time.sleep(0.2))
    assert used.wall >= 0.2 > used.cpu


@pytest.mark.slow
@pytest.mark.skipif(not sides.PYTHON.is_file(), reason="`make bench-peers` makes the peers' environment")
def test_open_clips_own_reader_takes_the_tars_of_shard_whole_and_computes_the_same_losses(tmp_path):
    project = make_project(tmp_path / "project", cache_teacher__text_cut="chunk")
    for stage in ("base", "shard", "cache_teacher"):
        run_stage(stage, project)
    training.agreement(None, World(project, Sizes()))
