"""The processes that write shards: clean ones, fed by a lazy stream of jobs, so that none pile up in memory."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.shard.jobs import Job, run_job
from pipeline_lib.shard.records import Result


def _start_worker() -> None:
    """Let a worker end with its parent, leave Ctrl-C to it, and do without torch, which webdataset would import."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runtime.leave_ctrl_c_to_parent()
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed; an unfinished file is removed by the next run


@dataclass(frozen=True, slots=True)
class Workers:
    """A pool of clean processes (no threads, locks or files of ours), started as they are needed."""

    pool: ProcessPoolExecutor
    count: int

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield results in the order of the jobs; only a few jobs are drawn ahead of the slowest."""
        waiting: deque[Future[Result]] = deque()

        def next_result() -> Result:
            result = waiting.popleft().result()
            runtime.stop_if_asked()
            return result

        for job in jobs:
            waiting.append(self._submit(job))
            if len(waiting) > 2 * self.count:
                yield next_result()
        while waiting:
            yield next_result()

    def _submit(self, job: Job) -> Future[Result]:
        try:
            return self.pool.submit(run_job, job)
        except (EOFError, ConnectionError):  # who starts the workers was killed
            raise BrokenProcessPool from None
        except OSError as error:
            if error.errno == errno.EBADF:  # a worker was, and the pool closes its pipes just now
                raise BrokenProcessPool from None
            raise


@contextmanager
def start_workers(count: int | None = None) -> Iterator[Workers]:
    """Start workers, by default one per core.

    Raises:
        UserError: They cannot be started, or one of them was killed.
    """
    available = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in available else "spawn")
    if "forkserver" in available:
        context.set_forkserver_preload([__name__])
    count, others = count or runtime.available_cores(), set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    except OSError as error:
        raise UserError(
            f"shard: no worker processes can be started ({error.strerror}); make room in /dev/shm, or raise `ulimit -n`"
        ) from None
    try:
        yield Workers(pool, count)
    except BrokenProcessPool:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # one that started while the pool broke would be waited for for ever
        if runtime.stop_requested():
            raise runtime.Stopped from None
        raise UserError(
            "shard: a worker process was killed, probably for lack of memory; run again, finished shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
