"""From a spool to the store: all at once (`deliver`), or as it grows (`main`, the process that `sender` starts)."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking.client import MAX_POINTS, Client
from pipeline_lib.tracking.spool import Op, Spool
from pipeline_lib.tracking.store import Store, Target, delete_runs
from pipeline_lib.tracking.text import reason

SEND_SHARE = 0.005  # the largest share of the machine that deliveries may take
ORPHAN_SECONDS = 60  # longest life of a sending process whose stage was killed

log = logging.getLogger("pipeline_lib.tracking")


def merged(ops: Iterable[tuple[Op, int]]) -> Iterator[tuple[Op, int]]:
    """Yield the operations, each with the offset behind it; neighbouring points are joined up to `MAX_POINTS`."""
    points: list[Any] = []
    behind = 0
    for op, position in ops:
        is_points = op["op"] == "metrics"
        if points and not (is_points and len(points) + len(op["points"]) <= MAX_POINTS):
            yield {"op": "metrics", "points": points}, behind
            points = []
        if is_points:
            points, behind = points + op["points"], position
        else:
            yield op, position
    if points:
        yield {"op": "metrics", "points": points}, behind


def deliver(spool: Spool, store: Store) -> bool:
    """Send the whole spool of a run that has ended (or was killed) and remove it.

    Returns:
        False, with nothing done, if the run is still alive.

    Raises:
        UserError: The file does not say which run it is of.
    """
    if not spool.open():
        return False
    try:
        if spool.last() and not spool.first():
            raise UserError("the line that began the run is broken; see what it holds, then remove it")
        spool.end_if_killed()
        if spool.last().get("op") == "dropped":
            delete_runs(store.client, spool.first()["uid"])
        else:
            target: Target | None = None
            for op, _ in merged(spool.read()):
                target = store.apply(op, spool, target)
        spool.delete()
    finally:
        spool.close()
    return True


# The sending process --------------------------------------------------------------------------------------------------


class Job:
    """One spool on its way to the store while the stage appends to it, by the command `send` (`told`)."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self.spool = Spool(Path(told["spool"]))
        self.end: Op | None = None  # as the stage sent it; the spool may lack it
        self.error: str | None = None
        self.pause = told["every"]
        self._target: Target | None = None
        self._position = 0
        self._store: Store | None = None
        self._retry_at = 0.0
        self._sampled = time.monotonic()
        self._monitor: Any = None
        self._offered = {self.spool.path}

    def state(self) -> dict[str, Any]:
        """Return what the stage is answered: `error` and `done`."""
        return {"error": self.error, "done": self.error is None and self._position >= self.spool.size()}

    def drop(self) -> None:
        """Delete the run, and its spool; where that fails, the spool stays and says that it is dropped."""
        with suppress(Exception):
            delete_runs(self._open().client, self.spool.first()["uid"])
            self.spool.delete()

    def deliver_left(self) -> None:
        """Deliver one spool that an earlier stage left, to a store that answers."""
        left = [] if self.error or self._target is None else Spool.all(Path(self._told["root"]))
        spool = next((one for one in left if one.path not in self._offered), None)
        if spool is not None:
            self._offered.add(spool.path)
            with suppress(Exception):  # it stays, and `lineage sync` says why
                if deliver(spool, self._open()):
                    log.warning("sent what an earlier run had left in %s", spool.path.name)

    def attempt(self, *, at_once: bool) -> None:
        """Deliver what is new. A store that failed is left in peace for a while, unless it must be `at_once`."""
        began, opening = time.monotonic(), self._target is None  # beginning a run takes longer than sending to it
        if self.error and not at_once and began < self._retry_at:
            return
        try:
            self._deliver()
            self.error = None
        except Exception as failure:
            self.error = reason(failure)
            self._retry_at = time.monotonic() + self._told["retry"]
        every, share = self._told["every"], SEND_SHARE * runtime.available_cores()
        self.pause = every if opening or self.error else max(every, (time.monotonic() - began) / share)

    def _deliver(self) -> None:
        store = self._open()
        for op, position in merged(self.spool.read(self._position)):
            self._target = store.apply(op, self.spool, self._target)
            self._position = position
        if self._target is None:
            return
        if self.end and self.spool.last().get("op") != "end":
            store.apply(self.end, self.spool, self._target)
        if self._told["system_metrics"] and time.monotonic() - self._sampled >= self._told["sample"]:
            self._sampled = time.monotonic()
            store.log_system(self._target, self._sample())

    def _open(self) -> Store:
        if self._store is None:
            client = Client(Path(self._told["root"]), self._told["experiment"])
            self._store = Store(client, strict=self._told["strict"])
        return self._store

    def _sample(self) -> dict[str, float]:
        """Return the load of processor, memory, disk, network and GPUs, by MLflow's own monitors."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = self._monitor or SystemMetricsMonitor("", tracking_uri="")
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for part in self._monitor.monitors:
            part.clear_metrics()
        return values

    def end_for_stage(self) -> None:
        """End the run of a stage that died without a word, unless another process has resumed it, and deliver it."""
        signal.alarm(ORPHAN_SECONDS)
        while os.getppid() == self._told["process"]:
            time.sleep(0.05)  # the pipe is closed a little before the process is gone
        time.sleep(0.2)  # and its locks are freed a little later
        if self.spool.is_ended() or not self.spool.open(patience=1.0):
            return
        if not self.spool.last():  # it was sent and removed in between, and we have just made it anew
            self.spool.delete()
        elif not self.spool.is_ended():
            self.spool.end_if_killed()
            self.attempt(at_once=True)
            if self.state()["done"]:
                self.spool.delete()
        self.spool.close()


def work(commands: queue.Queue[dict[str, Any] | None], say: Callable[[dict[str, Any]], None]) -> None:
    """Carry out commands until there are no more (None); between them, deliver at the job's pace."""
    job: Job | None = None
    while (told := _next(commands, job)) is not None:
        if told["do"] == "send":
            job = _begin(told, job)
        assert job is not None, "the first command is `send`"
        before = job.error
        if told["do"] == "drop":
            job.drop()
        else:
            job.end = told.get("op")
            job.attempt(at_once=told["do"] != "tick")
        if told["number"] or job.error != before:
            say({"number": told["number"], **job.state()})
        if told["do"] in ("end", "drop"):
            job = None
        elif commands.empty():
            job.deliver_left()
    if job is not None:
        job.end_for_stage()


def _next(commands: queue.Queue[dict[str, Any] | None], job: Job | None) -> dict[str, Any] | None:
    """Return the next command; `tick` where none comes for the job's pause."""
    try:
        return commands.get(timeout=job.pause if job else None)
    except queue.Empty:
        return {"do": "tick", "number": 0}


def _begin(told: dict[str, Any], former: Job | None) -> Job:
    """Begin the job of a command `send`, in whose place a former one that has not ended goes."""
    if former is not None:
        former.drop()
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(told["environment"])
    return Job(told)


class _Relay(logging.Handler):
    """Hands warnings to the stage, whose log is the one that is read."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({"warning": record.getMessage()})


def main() -> None:
    """Read commands from standard input, one JSON object a line, and answer on standard output."""
    os.nice(5)  # the stage goes first where both want a processor
    answers: IO[bytes] = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints gets among the answers
    commands: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def say(answer: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            answers.write(json.dumps(answer).encode() + b"\n")

    def read() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        commands.put(None)

    logging.getLogger("pipeline_lib").addHandler(_Relay(say))
    threading.Thread(target=read, daemon=True).start()
    work(commands, say)
