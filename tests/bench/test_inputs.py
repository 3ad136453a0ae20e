"""The CPU time of a stage is that of all that it starts, of orphaned workers too; its memory is that of the largest."""

from tests.bench.inputs import alternate, stage_used

BURN = """
import os, time
if os.fork() == 0 and os.fork() == 0:  # a grandchild, whose parent is gone
    held = b"x" * 300_000_000
    while time.process_time() < 0.5:
        pass
"""


def test_what_a_stage_leaves_behind_is_waited_for_and_counted(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").touch()
    (tmp_path / "stages/burn.py").write_text(BURN)
    used = stage_used("burn", tmp_path)
    assert 0.5 <= used.cpu < 5
    assert used.wall > 0.5
    assert 0.3 < used.gigabytes < 0.6


def test_calls_are_timed_by_the_clock_that_is_given_and_the_first_round_does_not_count():
    now = [0.0]

    def lasting(*seconds):
        rounds = iter(seconds)
        return lambda: now.__setitem__(0, now[0] + next(rounds))

    assert alternate(3, lambda: now[0], a=lasting(9, 1, 3, 2), b=lasting(9, 5, 5, 6)) == {"a": 2.0, "b": 5.0}
