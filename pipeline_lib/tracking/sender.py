"""The process that brings a spool to the store while the stage works: the stage never imports mlflow nor waits for it.

`Sender` is the stage's side: it starts the process (`main`), tells it by JSON lines what to send, and hears how that
went. `work` is the other side. When the stage's process dies without a word, its end of the pipe closes: the sender
then says KILLED for it, delivers what the spool holds, and ends as well.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking.client import MAX_POINTS, reason
from pipeline_lib.tracking.describe import PACKAGE, now
from pipeline_lib.tracking.spool import Op, Spool
from pipeline_lib.tracking.store import Store, Target

log = logging.getLogger("pipeline_lib.tracking")

SEND_EVERY, SEND_SHARE = 2.0, 0.005  # seconds between deliveries; the largest share of the machine that they may take
RETRY_EVERY = 30.0  # seconds between attempts to reach a store that failed
SAMPLE_EVERY = 10.0  # seconds between samples of the system metrics
ORPHAN_SECONDS = 60  # longest life of a sender whose stage was killed


# The stage's side -----------------------------------------------------------------------------------------------------


class Sender:
    """The sending process, as the stage sees it. One job at a time: `send`, then perhaps `resume`, then `end`."""

    done = False  # the store has all of the spool
    error: str | None = None  # why the last delivery failed

    def __init__(self) -> None:
        paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]
        self._process = subprocess.Popen(  # its own group: a signal for the stage's is not for this process
            [sys.executable, "-c", "from pipeline_lib.tracking.sender import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            process_group=0,
        )
        self._asked = self._answered = 0
        self._changed = threading.Condition()
        self._failed: Callable[[], None] = lambda: None
        self._listener = threading.Thread(target=self._listen, name="tracking", daemon=True)
        self._listener.start()

    @classmethod
    def take(cls) -> Sender:
        """A sender that has nothing to do: one that served an earlier run of this process, or a new one."""
        while _idle:
            sender = _idle.pop()
            if sender._process.poll() is None:
                return sender
        return cls()

    def give_back(self) -> None:
        """Let a later run of this process have it; importing mlflow is what takes long."""
        _idle.append(self)

    def send(self, spool: Spool, root: Path, experiment: str, *, failed: Callable[[], None], **options: bool) -> int:
        """Begin to send a spool; `failed` is called (by another thread) when a delivery failed."""
        self.done, self.error, self._failed = False, None, failed
        environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        pace = {"every": SEND_EVERY, "retry": RETRY_EVERY, "sample": SAMPLE_EVERY}
        return self._ask(
            "send",
            process=os.getpid(),
            spool=str(spool.path),
            root=str(root),
            experiment=experiment,
            environment=environment,
            **pace,
            **options,
        )

    def resume(self, spool: Spool) -> int:
        """Drop the run just begun and send this spool instead."""
        return self._ask("resume", spool=str(spool.path))

    def push(self) -> int:
        """Send what there is now."""
        return self._ask("push")

    def end(self, op: Op) -> int:
        """Send what is left, and `op`, the spool's last operation, even if the disk had no room for it."""
        return self._ask("end", op=op)

    def wait(self, number: int, timeout: float | None) -> bool:
        """Wait until what was asked with this number has been tried; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._answered >= number, timeout)

    def kill(self, error: str) -> None:
        """End the process at once, because of `error`; what the store does not have stays in the spool."""
        self._failed = lambda: None
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self.error = error

    def _ask(self, what: str, **details: Any) -> int:
        self._asked += 1
        line = json.dumps({"do": what, "number": self._asked, **details})
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died: `_listen` says so
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        return self._asked

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._hear(json.loads(line))
        self._hear({"number": sys.maxsize, "error": "the sending process died", "done": False})

    def _hear(self, said: dict[str, Any]) -> None:
        if "warning" in said:
            log.warning("%s", said["warning"])
            return
        with self._changed:
            self.error, self.done = said["error"], said["done"]
            self._answered = max(self._answered, said["number"])
            self._changed.notify_all()
        if self.error:
            self._failed()


_idle: list[Sender] = []


# The other side -------------------------------------------------------------------------------------------------------


def merged(ops: Iterable[tuple[Op, int]]) -> Iterator[tuple[Op, int]]:
    """The operations with neighbouring points joined into batches of at most `MAX_POINTS`."""
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
        close_killed(spool)
        send(spool, store)
        spool.delete()
    finally:
        spool.close()
    return True


def send(spool: Spool, store: Store) -> None:
    """Bring a spool to the store from its first line to its last."""
    if spool.last().get("op") == "dropped":
        store.drop(spool.first()["uid"])
        return
    target: Target | None = None
    for op, _ in merged(spool.read()):
        target = store.apply(op, spool, target)


def close_killed(spool: Spool) -> None:
    """Write the end that a killed process could not write, if it is missing."""
    if not _is_ended(spool):
        spool.append({"op": "end", "status": "KILLED", "message": "", "time": now()})


class Job:
    """One spool on its way to the store."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self.stage_process = told["process"]
        self.end: Op | None = None  # how the stage said that it ended
        self.spool = Spool(Path(told["spool"]))
        self.target: Target | None = None
        self.position = 0
        self.error: str | None = None
        self.pause = told["every"]
        self._store: Store | None = None
        self._retry_at = 0.0
        self._sampled = time.monotonic()
        self._monitor: Any = None

    def state(self) -> dict[str, Any]:
        """How far it is."""
        done = self.error is None and self.position >= self.spool.size()
        return {"error": self.error, "done": done}

    def resume(self, path: str) -> None:
        """Delete the run just begun and go on with another spool."""
        with suppress(Exception):  # its spool stays, and says that it is dropped
            self._open().drop(self.spool.first()["uid"])
            self.spool.delete()
        self.spool, self.target, self.position = Spool(Path(path)), None, 0

    def attempt(self, *, at_once: bool) -> None:
        """Deliver what is new. A store that failed is left in peace for a while, unless it must be `at_once`."""
        began, opening = time.monotonic(), self.target is None  # beginning a run takes longer than sending to it
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
        for op, position in merged(self.spool.read(self.position)):
            self.target = store.apply(op, self.spool, self.target)
            self.position = position
        if self.end and self.target and self.spool.last().get("op") != "end":
            store.apply(self.end, self.spool, self.target)
        if self._told["system_metrics"] and self.target and time.monotonic() - self._sampled >= self._told["sample"]:
            self._sampled = time.monotonic()
            store.log_system(self.target, self._sample())

    def _open(self) -> Store:
        if self._store is None:
            self._store = Store(Path(self._told["root"]), self._told["experiment"], strict=self._told["strict"])
        return self._store

    def _sample(self) -> dict[str, float]:
        """Load of processor, memory, disk, network and GPUs, by MLflow's own monitors."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = self._monitor or SystemMetricsMonitor("", tracking_uri="")
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for part in self._monitor.monitors:
            part.clear_metrics()
        return values


def work(commands: queue.Queue[dict[str, Any] | None], say: Callable[[dict[str, Any]], None]) -> None:
    """Carry out commands until there are no more (None); between them, deliver at the job's pace."""
    job: Job | None = None
    while True:
        try:
            told = commands.get(timeout=job.pause if job else None)
        except queue.Empty:
            told = {"do": "tick", "number": 0}
        if told is None:
            break
        if told["do"] == "send":
            _take_environment(told["environment"])
            job = Job(told)
        assert job is not None, "the first command is `send`"
        if told["do"] == "resume":
            job.resume(told["spool"])
        job.end = told.get("op")
        before = job.error
        job.attempt(at_once=told["do"] != "tick")
        if told["number"] or job.error != before:
            say({"number": told["number"], **job.state()})
        if told["do"] == "end":
            job = None
    if job is not None:
        _bury(job)


def _take_environment(environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in environment]:
        del os.environ[name]
    os.environ.update(environment)


def _bury(job: Job) -> None:
    """The stage's process is gone and has not ended its run: end it, unless it has been resumed already."""
    signal.alarm(ORPHAN_SECONDS)
    while os.getppid() == job.stage_process:
        time.sleep(0.05)  # the pipe is closed a little before the process is gone
    time.sleep(0.2)  # and its locks are freed a little later
    if _is_ended(job.spool) or not job.spool.open(patience=1.0):
        return
    if not job.spool.last():  # it was sent and removed in between, and we have just made it anew
        job.spool.delete()
    elif not _is_ended(job.spool):
        close_killed(job.spool)
        job.attempt(at_once=True)
        if job.state()["done"]:
            job.spool.delete()
    job.spool.close()


def _is_ended(spool: Spool) -> bool:
    """Whether it is gone, or another process has resumed and ended the run."""
    return spool.last().get("op", "end") in ("end", "dropped")


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
