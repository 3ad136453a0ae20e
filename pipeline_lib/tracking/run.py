"""The run that a stage logs to: the null object, and the one that writes to a spool and never waits for the store."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib import config
from pipeline_lib.errors import UserError
from pipeline_lib.tracking.describe import (
    describe,
    is_remote,
    now,
    project_root,
    public,
    safe_name,
    store_name,
    store_uri,
)
from pipeline_lib.tracking.sender import Sender
from pipeline_lib.tracking.spool import Op, Spool
from pipeline_lib.tracking.store import MAX_POINTS, Store, prepare_environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("pipeline_lib.tracking")

SYNC = "python -m pipeline_lib.lineage sync"
SAMPLE_EVERY = 10.0  # seconds between samples of the system metrics
Waits = tuple[float | None, float | None]  # longest wait for the store at a run's start and at its end; seconds
WAIT_REMOTE: Waits = (2.5, 4.0)  # in `best_effort`
WAIT_LOCAL: Waits = (60.0, 60.0)
FOREVER: Waits = (None, None)  # in `required`, where the store's answer decides


class Run:
    """What a stage logs to. This base class is the null object: every method does nothing."""

    run_id: str = ""  # what `resume` takes; put it into a checkpoint

    @property
    def info(self) -> str:
        """One line: where it went."""
        return "tracking disabled"

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add points to the curves of this run; buffered, sent in batches by a thread of its own."""

    def headline(self, values: Mapping[str, float]) -> None:
        """Log final numbers here and on the configuration's row."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of the file `path` below `folder` of the run's artifacts (the file may vanish afterwards)."""

    def log_text(self, text: str, name: str) -> None:
        """Keep `text` as artifact `name`, such as `report.md` or `tables/recall.md`."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a matplotlib figure as artifact `name`, such as `plots/loss.png`."""

    def dataset(self, name: str, digest: str, context: str) -> None:
        """Name a data set that this run reads (an MLflow input); `context` says what for: `refine`, `val`, ..."""

    def output(self, digest: str) -> None:
        """The digest of the output folder's manifest: the name under which later stages find this run."""

    def flush(self) -> None:
        """Make all that was logged durable (on disk; with `required` in the store). Call it before a checkpoint."""

    def resume(self, run_id: str) -> None:
        """Go on with the run of a checkpoint (its `run_id`) instead of this new one; call it before logging points."""


@contextmanager
def stage_run(stage: str, params_file: Path, *, upstream: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Track one execution of a stage; its run ends FINISHED, FAILED or KILLED as the block does.

    Args:
        stage: The stage's name as in dvc.yaml; one item of a matrix as `evaluate@refined`.
        params_file: params.yaml; its dotted keys become the run's parameters.
        upstream: For each stage whose output this one reads, the `digest` of that output's manifest
            (`{"base": ..., "evaluate@refined": ...}`).

    Yields:
        The run; in a torch.distributed world only rank 0 gets one that logs.

    Raises:
        UserError: `tracking.mode` is `required` and the store fails.
    """
    settings = config.load(params_file, "tracking")
    if settings.mode == "disabled" or not is_first_process():
        yield Run()
        return
    run = TrackedRun(project_root(params_file), settings, describe(stage, params_file, upstream or {}))
    run.begin()
    try:
        yield run
    except BaseException as error:
        with suppress(UserError):  # the stage's own error is the one to see
            run.end(status_of(error), public(f"{type(error).__name__}: {error}".splitlines()[0]))
        raise
    run.end("FINISHED")


def is_first_process() -> bool:
    """Whether this is the process that speaks for a torch.distributed world (torchrun, or srun with MASTER_ADDR)."""
    slurm = "SLURM_PROCID" in os.environ and "MASTER_ADDR" in os.environ
    return os.environ.get("SLURM_PROCID" if slurm else "RANK", "0") == "0"


def status_of(error: BaseException) -> str:
    """MLflow's word for how a stage ended; a signal (Ctrl-C, exit code above 128) is KILLED."""
    if isinstance(error, SystemExit):
        code = error.code
        return "FINISHED" if not code else "KILLED" if isinstance(code, int) and code > 128 else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """In `required`, raise what the store said; in `best_effort`, let nothing that tracking does reach the stage."""

    @functools.wraps(method)
    def call(self: TrackedRun, *arguments: Any, **named: Any) -> None:
        if self.required:
            self.check()
            method(self, *arguments, **named)
            return
        try:
            if not self.broken:
                method(self, *arguments, **named)
        except Exception as error:
            self.broken = method.__name__ == "begin"
            log.warning("tracking: %s failed (%s: %s); the work goes on", method.__name__, type(error).__name__, error)

    return call


class TrackedRun(Run):
    """A run that writes to its spool, and whose thread sends the spool to the store."""

    def __init__(self, root: Path, settings: config.Tracking, start: Op) -> None:
        self.required = settings.mode == "required"
        self.broken = False
        self.run_id = start["uid"]
        self._root, self._settings, self._start = root, settings, start
        self._said = False
        self._began = self._sampled = time.monotonic()
        self._points: list[list[Any]] = []  # not in the spool yet
        self._lock = threading.Lock()  # guards the points and the spool's end
        self._spool = Spool.of(root, start["stage"], start["uid"])
        waits = WAIT_REMOTE if is_remote(store_uri(root)) else WAIT_LOCAL
        self._start_wait, self._end_wait = FOREVER if self.required else waits
        self._sender = Sender(self._spool, self._connect, self._tick, self._say_failed)

    @property
    def info(self) -> str:
        """One line: where it went."""
        where = store_name(self._root)
        if self._sender.error is None and self._sender.target is not None:
            return f"MLflow run {self._start['stage']} of {self._start['row']} in {where}"
        path = self._spool.path.relative_to(self._root)
        return f"spooled to {path}, MLflow at {where}: {self._sender.error or 'slow'}; send it later with `{SYNC}`"

    @_guarded
    def begin(self) -> None:
        """Open the spool, start the thread, and wait (shortly, in `best_effort`) until the run is in the store."""
        prepare_environment(self._settings.mode)
        with suppress(ImportError):  # said by the thread; importing here keeps it from racing with the stage's imports
            import mlflow  # noqa: F401
        self._spool.open()
        self._spool.append(self._start)
        self._sender.start()
        self._sender.wait_for(lambda: bool(self._sender.target or self._sender.error), self._start_wait)
        if self.required and self._sender.error:
            self._sender.finish(0.0)
            self._spool.delete()
            self.check()
        self._began = time.monotonic()

    @_guarded
    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See `Run`."""
        self._add_points(values, step)

    @_guarded
    def headline(self, values: Mapping[str, float]) -> None:
        """See `Run`."""
        at = now()
        self._write({"op": "headline", "points": [[safe_name(k), float(v), None, at] for k, v in values.items()]})

    @_guarded
    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See `Run`."""
        copy = self._spool.place(path.name)
        shutil.copyfile(path, copy)
        self._write_artifact(copy, folder)

    @_guarded
    def log_text(self, text: str, name: str) -> None:
        """See `Run`."""
        copy = self._spool.place(name)
        copy.write_text(text, encoding="utf-8")
        self._write_artifact(copy, Path(name).parent.as_posix())

    @_guarded
    def log_figure(self, figure: Figure, name: str) -> None:
        """See `Run`."""
        copy = self._spool.place(name)
        figure.savefig(copy, bbox_inches="tight")
        self._write_artifact(copy, Path(name).parent.as_posix())

    @_guarded
    def dataset(self, name: str, digest: str, context: str) -> None:
        """See `Run`."""
        self._write({"op": "dataset", "name": name, "digest": digest, "context": context})

    @_guarded
    def output(self, digest: str) -> None:
        """See `Run`."""
        self._write({"op": "output", "digest": digest})

    @_guarded
    def flush(self) -> None:
        """See `Run`."""
        self._collect()
        self._spool.sync()
        if self.required:
            size = self._spool.size()
            self._sender.wake()
            self._sender.wait_for(lambda: self._sender.position >= size or bool(self._sender.error), None)
            self.check()

    @_guarded
    def resume(self, run_id: str) -> None:
        """See `Run`. What was said about this new run is said about the resumed one instead."""
        old, new = self._spool, Spool.of(self._root, self._start["stage"], run_id)
        if not run_id or run_id == self.run_id or not new.open():  # not open: the process of that run is alive
            return
        with self._lock:
            for op, _ in list(old.read()):
                if op["op"] == "start":
                    op |= {"uid": run_id, "resumed": True}
                elif op["op"] == "artifact":
                    op["file"] = new.name_of(old.file_of(op).rename(new.place(op["file"])))
                new.append(op)
            self.run_id, self._spool, self._sender.spool = run_id, new, new
        self._sender.wake()

    def end(self, status: str, message: str = "") -> None:
        """Close the run and wait (shortly, in `best_effort`) until the store has everything.

        Raises:
            UserError: `tracking.mode` is `required` and the store failed.
        """
        self._write_end(status, message)
        self._sender.finish(self._end_wait)
        if self.broken:
            return
        if self._sender.is_done():
            self._spool.delete()
            log.info("%s", self.info)
            return
        self.release()
        if self.required:
            self.check()
        self._say_failed()

    def release(self) -> None:
        """Leave the spool to a later delivery."""
        self._spool.close()

    @_guarded
    def _write_end(self, status: str, message: str) -> None:
        seconds = round(time.monotonic() - self._began, 3)
        self._collect()
        self._write({"op": "end", "status": status, "message": message, "seconds": seconds, "time": now()})
        self._spool.sync()

    def check(self) -> None:
        """Raise if the store failed.

        Raises:
            UserError: It did; the message holds the reason and the remedy.
        """
        if self._sender.error:
            raise UserError(
                f"tracking.mode: `required`, but MLflow at {store_name(self._root)} failed ({self._sender.error}); "
                "see to the server and to MLFLOW_TRACKING_URI, or set tracking.mode to best_effort"
            )

    def _connect(self) -> Store:
        return Store(self._root, self._settings.experiment, strict=self.required)

    def _say_failed(self) -> None:
        """Once, whatever happens how often."""
        if not self.required and not self._said:
            self._said = True
            log.warning("%s", self.info)

    def _write(self, op: Op) -> None:
        with self._lock:
            self._spool.append(op)
        self._sender.wake()

    def _write_artifact(self, copy: Path, folder: str) -> None:
        self._write({"op": "artifact", "file": self._spool.name_of(copy), "folder": "" if folder == "." else folder})

    def _add_points(self, values: Mapping[str, float], step: int | None) -> None:
        at = now()
        points = [[safe_name(name), float(value), step, at] for name, value in values.items()]
        with self._lock:
            self._points += points

    def _collect(self) -> None:
        """Move the points from memory to the spool."""
        with self._lock:
            points, self._points = self._points, []
            for first in range(0, len(points), MAX_POINTS):
                self._spool.append({"op": "metrics", "points": points[first : first + MAX_POINTS]})

    def _tick(self) -> None:
        """What the thread does before each delivery."""
        clock = time.monotonic()
        if self._settings.system_metrics and clock - self._sampled >= SAMPLE_EVERY:
            self._sampled = clock
            self._sample(int(clock - self._began))
        self._collect()

    @functools.cached_property
    def _monitor(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        return SystemMetricsMonitor(self.run_id, tracking_uri=store_uri(self._root))

    def _sample(self, seconds: int) -> None:
        """Log the load of processor, memory, disk, network and GPUs, by MLflow's monitors and under its names."""
        try:
            self._monitor.collect_metrics()
            values = self._monitor.aggregate_metrics()
            for part in self._monitor.monitors:
                part.clear_metrics()
        except Exception as error:
            self._sampled = float("inf")
            log.warning("no system metrics from here on (%s: %s)", type(error).__name__, error)
            return
        self._add_points({f"system/{name}": value for name, value in values.items()}, seconds)
