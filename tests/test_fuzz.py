"""The fuzzer finds a planted fault and makes it small; each of its targets takes some mutations without a finding."""

import json
import time
from pathlib import Path

import pytest

from pipeline_lib.core.errors import UserError
from tests.fuzz import campaign
from tests.fuzz.targets import TARGETS, Target
from tests.small_sets import write


def target_of(read, content='{"name": "x", "sizes": [1, 2]}'):
    return Target(lambda folder: write(folder / "a.json", content), "*.json", read)


def test_a_planted_fault_is_found_once_and_made_small(tmp_path):
    def read():
        content = json.loads(Path("set/a.json").read_text(errors="replace"))
        if not isinstance(content, dict) or not isinstance(content.get("sizes"), list):
            raise UserError("no sizes")
        sum(content["sizes"])  # a TypeError where one is no number

    def careful():
        try:
            read()
        except (ValueError, RecursionError):
            raise UserError("no JSON") from None

    found = campaign.fuzz("planted", target_of(careful), tmp_path / "work", 0, tmp_path / "kept", readings=400)
    assert list(found.findings) == [f"TypeError at test_fuzz.py:{read.__code__.co_firstlineno + 4}"]
    assert 0 < found.refused < found.executions
    [file] = (tmp_path / "kept/planted").iterdir()
    assert len(file.read_bytes()) < 60


def test_a_seed_gives_the_same_mutations_whatever_else_is_loaded(tmp_path, monkeypatch):
    """Hypothesis would draw numbers that stand as constants in modules of this project, the later loaded ones too."""
    found = []
    for turn in range(2):
        seen = []
        target = target_of(lambda: seen.append(Path("set/a.json").read_bytes()), "x" * 2000)  # noqa: B023
        campaign.fuzz("seen", target, tmp_path / "work", 3, tmp_path / "kept", readings=250)
        found.append(seen)
        late = write(tmp_path / f"late_{turn}.py", f"NUMBERS = {list(range(101, 2000, 2))}\n")
        monkeypatch.syspath_prepend(tmp_path)
        __import__(late.stem)
    assert len(found[0]) == 251  # and the example itself
    assert found[0] == found[1]


def busy():
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (busy, "TookTooLongError"),
        (lambda: time.sleep(60), "TookTooLongError"),
        (lambda: bytes(3 << 30), "MemoryError"),
    ],
    ids=["busy", "waits", "memory"],
)
def test_what_takes_too_long_or_too_much_is_stopped(monkeypatch, read, what):
    monkeypatch.setattr(campaign, "SECONDS", 0.2)
    with pytest.raises((campaign.TookTooLongError, MemoryError)) as raised, campaign.limits():
        read()
    assert type(raised.value).__name__ == what


@pytest.mark.parametrize("name", TARGETS)
def test_the_example_of_every_target_is_taken(tmp_path, name):
    found = campaign.fuzz(name, TARGETS[name], tmp_path / "work", 0, tmp_path / "kept", readings=0)
    assert found.executions == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_reader_takes_or_refuses_what_is_mutated(tmp_path, name):
    found = campaign.fuzz(name, TARGETS[name], tmp_path / "work", 7, tmp_path / "kept", readings=campaign.ROUND)
    assert found.findings == {}
    assert found.executions > found.refused > 0
