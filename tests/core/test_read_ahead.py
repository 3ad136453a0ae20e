"""Items read by other processes are those read here, in order; processes that die, or cannot start, cost no item."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.read_ahead import read_ahead

ROOT = Path(__file__).parents[2]


class Item(NamedTuple):
    tensor: torch.Tensor
    again: torch.Tensor
    array: np.ndarray
    more: dict


class Numbers:
    """Twenty items; one of them may kill whom it is read by, if that is another process, or be refused."""

    def __init__(self, deadly=None, refused=None):
        self.deadly, self.refused, self.home = deadly, refused, os.getpid()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == self.deadly and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.refused:
            raise UserError(f"item {index}: see to it")
        tensor = torch.full((3, 50_000), index, dtype=torch.float16)
        return Item(tensor, tensor, np.arange(index), {"by": os.getpid(), "list": [tensor[0], None]})


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_whole_and_in_order(workers):
    found = list(read_ahead(Numbers(), num_workers=workers))
    for index, item in enumerate(found):
        assert torch.equal(item.tensor, torch.full((3, 50_000), index, dtype=torch.float16))
        assert item.again is item.tensor  # sent once
        assert item.array.tolist() == list(range(index))
        assert torch.equal(item.more["list"][0], item.tensor[0])
        assert not item.tensor.is_shared()  # came through no shared memory, which may have no room
    assert len(found) == 20
    assert (os.getpid() in {item.more["by"] for item in found}) == (workers == 0)


@pytest.mark.parametrize("deadly", [0, 7])
def test_what_a_killed_process_was_to_read_is_read_here(caplog, deadly):
    found = list(read_ahead(Numbers(deadly), num_workers=2))
    assert [int(item.tensor[0, 0]) for item in found] == list(range(20))
    assert caplog.text.count("a reading process died") == 1
    assert found[-1].more["by"] == os.getpid()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_killed_while_it_sends_is_waited_for_by_nobody(caplog, number):
    """Half an item stands in its pipe then: an item is five times what a pipe holds."""
    reading = read_ahead(Numbers(), num_workers=2)
    found = [next(reading)]
    workers = psutil.Process().children()[-2:]
    time.sleep(0.5)  # until they wait for somebody who takes the rest
    workers[number].kill()
    found += reading
    assert [int(item.tensor[0, 0]) for item in found] == list(range(20))
    assert caplog.text.count("a reading process died") == 1
    assert not any(worker.is_running() for worker in workers)


def test_no_worker_outlives_a_loop_that_is_left(caplog):
    reading = read_ahead(Numbers(), num_workers=2)
    next(reading)
    workers = psutil.Process().children()[-2:]
    reading.close()
    assert not any(worker.is_running() for worker in workers)
    assert caplog.text == ""


def test_where_no_process_can_start_everything_is_read_here(caplog):
    """As where /dev/shm has no room for their locks, here for want of file descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))  # the limit is one of numbers, and the lowest free one is taken first
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, before[1]))
    try:
        found = list(read_ahead(Numbers(), num_workers=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [int(item.tensor[0, 0]) for item in found] == list(range(20))
    assert {item.more["by"] for item in found} == {os.getpid()}
    assert caplog.text.count("no reading processes can be started (") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_is_refused_is_the_same_sentence(workers):
    with pytest.raises(UserError, match=r"^item 3: see to it$"):
        list(read_ahead(Numbers(refused=3), num_workers=workers))


STAGE = """
import time, torch
from pipeline_lib import terminal
from pipeline_lib.core import runtime
from pipeline_lib.core.read_ahead import read_ahead

class Slow:
    def __len__(self): return 1000
    def __getitem__(self, index):
        time.sleep(0.05)
        return index, torch.zeros(100_000)

def main(params_file):
    for index, _ in runtime.until_stopped(read_ahead(Slow(), num_workers=2)):
        print(index, flush=True)

terminal.run_stage(main, None)
"""


def start_stage(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)


def test_ctrl_c_of_a_terminal_leaves_the_workers_to_the_stage(tmp_path):
    """It reaches the whole process group: no worker says a word, and the loop ends in order."""
    process = start_stage(tmp_path)
    assert process.stdout.readline() == b"0\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.count(b"\n") == 1, errors
    assert b"stopping at the next step" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("reading", [False, True])
def test_no_worker_outlives_a_stage_that_is_killed(tmp_path, reading):
    """Whether it has just been forked, or waits until somebody takes what it has read."""
    process = start_stage(tmp_path)
    if reading:
        assert process.stdout.readline() == b"0\n"
    while not (workers := psutil.Process(process.pid).children()):
        time.sleep(0.001)
    if reading:
        os.kill(process.pid, signal.SIGSTOP)  # it takes nothing any more
        time.sleep(0.5)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert not alive
