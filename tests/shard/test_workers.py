"""What becomes of a stage whose workers, or the process that starts them, are killed, or cannot start."""

import contextlib
import os
import resource
import time
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import psutil
import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.shard.workers import start_workers


def run_after_a_kill(victim):
    """Jobs for two workers, when one, or the process that starts them, has been killed."""
    with start_workers(2) as workers:
        worker = psutil.Process(workers.pool.submit(os.getpid).result())
        killed = worker if victim == "worker" else worker.parent()
        killed.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            while killed.is_running() and killed.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
        list(workers.run([SimpleNamespace()] * 20))


@pytest.mark.parametrize("victim", ["worker", "their server"])
def test_a_killed_process_is_one_sentence(victim):
    with pytest.raises(UserError, match=r"^shard: a worker process was killed, .*; run again"):
        run_after_a_kill(victim)


def test_a_worker_that_outlives_the_pool_is_not_waited_for():
    """One that starts while another is killed: the pool waits for it, and it for work."""

    def run_in_a_broken_pool():
        with start_workers(1) as workers:
            workers.pool.submit(time.sleep, 600)
            raise BrokenProcessPool

    began = time.monotonic()
    with pytest.raises(UserError, match="a worker process was killed"):
        run_in_a_broken_pool()
    assert time.monotonic() - began < 60


def test_no_room_for_processes_is_one_sentence():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))  # the limit is one of numbers, and the lowest free one is taken first
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))
    try:
        with pytest.raises(UserError, match=r"^shard: no worker processes .* \(.*\); make room"), start_workers(2):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
