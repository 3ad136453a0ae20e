"""Every fault once on two stages: none is a finding. `python -m tests.faults` tries all of them, on all stages."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_faults_are_survived_or_refused():
    """In a process of its own: stages are forked from it, and would take over what other tests have started there."""
    command = [sys.executable, "-m", "tests.faults", "refine", "shard", "--times", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()[1:] if line]
    assert {row[0] for row in rows} == {"refine", "shard"}
    assert all(int(tried) > 0 == int(findings) for *_, tried, _, _, findings in rows)
