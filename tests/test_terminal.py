"""What a person sees of a stage that takes long, on a terminal and without one."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

from tests.tiny_project import ROOT

WORK = """
import logging, sys, time
from pipeline_lib import terminal

terminal.EVERY = 0.2
log = logging.getLogger("pipeline_lib.work")


def main(params_file):
    with terminal.progress(None, label="train", total=8, unit="step", enabled=ENABLED) as bar:
        for step in range(8):
            time.sleep(0.1)
            bar.update()
            bar.set_postfix(loss=f"{1 / (step + 1):.4f}", refresh=False)
            if step == 4:
                log.warning("checkpoint at step 5")
    for _ in terminal.progress(range(3), label="short", unit="it", enabled=ENABLED):
        pass


main.__globals__["__spec__"] = type("Spec", (), {"name": "stages.evaluate"})
sys.argv = ["stage"]
terminal.run_stage(main, None)
"""


def command(*, enabled=True):
    return [sys.executable, "-c", WORK.replace("ENABLED", str(enabled))]


def on_a_terminal():
    """What the work writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(command(), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written, deadline = b"", time.monotonic() + 60
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        assert time.monotonic() < deadline
        if select.select([ours], [], [], 0.1)[0]:
            try:
                written += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    process.wait()
    os.close(ours)
    return written.decode()


def shown(written):
    """The lines as they stand on the screen in the end: what follows a carriage return covers what was there."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        text = ""
        for part in line.split("\r"):
            text = part + text[len(part) :]
        lines.append(text.rstrip())
    return [re.sub(r"\x1b\[\w", "", line) for line in lines if line]


def test_a_line_of_the_log_does_not_tear_a_bar():
    written = on_a_terminal()
    lines = shown(written)
    assert "pipeline_lib.work: checkpoint at step 5" in lines
    bars = [line for line in lines if "step/s" in line]
    assert len(bars) == 1
    assert re.match(r"evaluate, 5 of 6 \| train: 100%.*8/8 .*loss=0\.1250", bars[0])


def test_without_a_terminal_a_bar_is_lines_with_the_time_of_day():
    done = subprocess.run(command(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d pipeline_lib\.(progress|work): ", line) for line in lines), lines
    bar = [line for line in lines if "progress" in line]
    assert 3 <= len(bar) <= 5  # one every 0.2 of the 0.8 seconds, and one at the end; none of the short one
    number = r"[\d.]+"
    form = rf"evaluate, 5 of 6 \| train: \d of 8 step \(\d+%\), {number} step/s, loss={number}, \d\d:\d\d left$"
    assert all(re.search(form, line) for line in bar), bar
    assert "8 of 8 step (100%)" in bar[-1]
    assert len(set(bar)) == len(bar)


def test_bars_that_are_switched_off_say_nothing():
    done = subprocess.run(command(enabled=False), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == ["pipeline_lib.work: checkpoint at step 5"]
