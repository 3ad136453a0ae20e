"""`python -m tests.load` at a toy size: every stage runs on both sizes, and what it says of each is there."""

import subprocess
import sys

import pytest

from tests.load.__main__ import HEADER
from tests.tiny_project import STAGES


@pytest.mark.slow
def test_every_stage_is_watched_on_both_sizes():
    """Files are watched too: those of a part's shards are not held open, ten times as many here."""
    command = [sys.executable, "-m", "tests.load", "--samples", "2000", "--shards", "40", "--classes", "100"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    header, *rows = ended.stdout.splitlines()
    assert header == HEADER
    found = [row.split() for row in rows]
    assert [(stage, samples) for stage, samples, *_ in found] == [(s, n) for s in STAGES for n in ("200", "2,000")]
    for _, _, *numbers in found:
        seconds, cpu, peak, private, second_half, files = map(float, numbers)
        assert seconds > cpu * 0.2 > 0
        assert private > 0
        assert peak > 0
        assert abs(second_half) < private
        assert 3 <= files < 40
