"""The run that a stage logs to: `Run`, which does nothing, and `TrackedRun`, which appends to a spool."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline_lib.core import config, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking import times
from pipeline_lib.tracking.client import prepare_environment
from pipeline_lib.tracking.describe import start_op
from pipeline_lib.tracking.place import project_root, store_name, store_uri
from pipeline_lib.tracking.sender import Sender
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.spool import Op, Spool, now
from pipeline_lib.tracking.text import public, safe_name

log = logging.getLogger("pipeline_lib.tracking")

SYNC = "python -m pipeline_lib.lineage sync"
WAIT_REMOTE, WAIT_LOCAL = 8.0, 60.0  # seconds; longest wait at the end in `best_effort` (a new local store is slow)
REFUSED_WITHIN = 60.0  # seconds; a stage that ends later for its user to mend has a run that says so
RESUME_PATIENCE = 10.0  # seconds that the sender of a killed process gets to deliver what that left


class Run:
    """What a stage logs to. This base class is what `disabled` gives: every method does nothing."""

    run_id: str = ""  # what `resume` takes; put it into a checkpoint

    @property
    def info(self) -> str:
        """One line for the log: where the run went."""
        return "tracking disabled"

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add points to the curves of this run; another process sends them, in batches."""

    def headline(self, values: Mapping[str, float | str]) -> None:
        """Log the few final numbers by which configurations are compared, on run and row; text becomes a tag."""

    def log_artifact(self, path: Path, folder: str = "", *, on_row: bool = False) -> None:
        """Keep a copy of the file `path` below `folder` of the run's artifacts (the file may vanish afterwards).

        `on_row`: and of those of the configuration's row.
        """

    def dataset(self, name: str, digest: str, context: str) -> None:
        """Log a data set that this run reads (an MLflow input); `context` says what for: `refine`, `val`, ..."""

    def output(self, digest: str) -> None:
        """Log the digest of the output folder's manifest, by which later stages find this run."""

    def flush(self) -> None:
        """Make all that was logged durable (on the disk; the store has it soon after). Call it before a checkpoint."""

    def check(self) -> None:
        """Raise UserError if the store is required and failed. Call it after a checkpoint, so that nothing is lost."""

    def settle(self) -> None:
        """Wait until a required store has everything. Call it while what the stage made can still be kept."""

    def resume(self, run_id: str) -> None:
        """Go on with the run of a checkpoint (its `run_id`) instead of this new one. Call it before logging points."""


@contextmanager
def stage_run(stage: str, params_file: Path, *, upstream: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Track one execution of a stage; its run ends FINISHED, FAILED or KILLED as the block does.

    One that is refused as it begins, for a mistake in params.yaml, leaves no run.

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
    settings = config.load(params_file, TrackingSettings)
    rank, _, _ = runtime.world_environment() or (0, 1, 0)
    if settings.mode == "disabled" or rank != 0:
        yield Run()
        return
    run = TrackedRun(project_root(params_file), settings, start_op(stage, params_file, upstream or {}))
    run.begin()
    try:
        yield run
    except BaseException as error:
        with suppress(UserError):  # the stage's own error is the one to see
            if isinstance(error, UserError) and run.has_just_begun:
                run.drop()
            else:
                run.end(status_of(error), public(f"{type(error).__name__}: {error}".splitlines()[0]))
        raise
    run.end("FINISHED")


def status_of(error: BaseException) -> str:
    """Return MLflow's status for a stage that raised `error`; a signal (Ctrl-C, exit code above 128) is KILLED."""
    if isinstance(error, SystemExit):
        code = error.code
        return "FINISHED" if not code else "KILLED" if isinstance(code, int) and code > 128 else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method so that in `best_effort` no error of it reaches the stage; log its first one."""

    @functools.wraps(method)
    def call(self: TrackedRun, *arguments: Any, **named: Any) -> None:
        if self.required:
            method(self, *arguments, **named)
            return
        try:
            if not self.broken:
                method(self, *arguments, **named)
        except Exception as error:
            name = method.__name__
            self.broken = name == "begin"
            if name not in self._failed:
                log.warning("tracking: %s failed (%s: %s); the work goes on", name, type(error).__name__, error)
            self._failed.add(name)

    return call


class TrackedRun(Run):
    """A run that appends to its spool, which a process of its own sends to the store."""

    def __init__(self, root: Path, settings: TrackingSettings, start: Op) -> None:
        self.required = settings.mode == "required"
        self.broken = self._warned = False
        self._warning = threading.Lock()
        self._failed: set[str] = set()  # methods whose failure has been logged
        self.run_id = start["uid"]
        self._root, self._settings, self._start = root, settings, start
        self._spool = Spool.of(root, start["stage"], start["uid"])
        self._began = time.monotonic()
        self._output, self._resumed, self._measured = "", False, False
        self._sender: Sender | None = None

    @property
    def info(self) -> str:
        """One line for the log: where the run went."""
        where = store_name(self._root)
        if self._sender and self._sender.error is None:
            return f"MLflow run {self._start['stage']} of {self._start['row']} in {where}"
        path, reason = self._spool.path.relative_to(self._root), self._sender.error if self._sender else "not asked"
        return f"spooled to {path}, MLflow at {where}: {reason}; send it later with `{SYNC}`"

    @_guarded
    def begin(self) -> None:
        """Open the spool and have it sent; in `required`, wait until the run is in the store."""
        prepare_environment(self._settings.mode)
        self._spool.open()
        self._spool.append(self._start)
        self._sender = Sender.take()
        number = self._send(self._sender)
        if self.required:
            self._sender.wait(number, None)
            if self._sender.error:
                self._sender.kill(self._sender.error)
                self._spool.delete()
                self.check()
        self._began = time.monotonic()

    def _send(self, sender: Sender) -> int:
        options = {"strict": self.required, "system_metrics": self._settings.system_metrics}
        return sender.send(self._spool, self._root, self._settings.experiment, failed=self._warn_failed, **options)

    @_guarded
    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See `Run`."""
        self._measured = True
        self._spool.append({"op": "metrics", "points": _points(values, step)})

    @_guarded
    def headline(self, values: Mapping[str, float | str]) -> None:
        """See `Run`."""
        texts = {safe_name(name): value for name, value in values.items() if isinstance(value, str)}
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        self._spool.append({"op": "headline", "points": _points(numbers, None), "texts": texts})

    @_guarded
    def log_artifact(self, path: Path, folder: str = "", *, on_row: bool = False) -> None:
        """See `Run`."""
        self._measured = True
        self._spool.append({"op": "artifact", "file": self._spool.keep(path), "folder": folder, "on_row": on_row})

    @_guarded
    def dataset(self, name: str, digest: str, context: str) -> None:
        """See `Run`."""
        self._spool.append({"op": "dataset", "name": name, "digest": digest, "context": context})

    @_guarded
    def output(self, digest: str) -> None:
        """See `Run`."""
        self._output = digest
        self._spool.append({"op": "output", "digest": digest})

    @_guarded
    def flush(self) -> None:
        """See `Run`."""
        self._spool.sync()

    @_guarded
    def resume(self, run_id: str) -> None:
        """See `Run`. What was logged to the new run so far is logged to the resumed one, and the new one is dropped."""
        old, new = self._spool, Spool.of(self._root, self._start["stage"], run_id)
        self._resumed = True
        if not run_id or run_id == self.run_id:
            return
        if not new.open(patience=RESUME_PATIENCE):
            log.warning("another process logs to run %s; the curves go on in a new one", run_id)
            return
        for op, _ in list(old.read()):
            if op["op"] == "start":
                op |= {"uid": run_id, "resumed": True}
            elif op["op"] == "artifact":
                op["file"] = new.keep(old.file_of(op))
            new.append(op)
        old.append({"op": "dropped"})  # the sender deletes the run now, or `sync` later
        self.run_id, self._spool = run_id, new
        if self._sender:
            self._send(self._sender)
        old.close()

    def end(self, status: str, message: str = "") -> None:
        """Close the run and wait, in `best_effort` shortly, until the store has everything; see `check` for errors."""
        seconds = round(time.monotonic() - self._began, 3)
        op = {"op": "end", "status": status, "message": message, "seconds": seconds, "time": now()}
        self._append_end(op)
        if status == "FINISHED" and self._output:
            self._note_time(seconds)
        if self._sender is None or self.broken:
            return
        far = self._sender.error or not store_uri(self._root).startswith("sqlite:")
        wait = None if self.required else WAIT_REMOTE if far else WAIT_LOCAL
        if self._sender.wait(self._sender.end(op), wait):
            self._sender.give_back()
        else:
            self._sender.kill(self._sender.error or "too slow")
        if self._sender.done:
            self._spool.delete()
            log.info("%s", self.info)
            return
        self._spool.close()
        if status == "FINISHED":
            name = os.environ.get("DVC_STAGE", self._start["stage"])
            self.check(f"; what the stage made is whole, `dvc commit {name}` keeps it")
        self.check()
        self._warn_failed()

    @property
    def has_just_begun(self) -> bool:
        """Return whether nothing was measured yet, in this process or one that it resumes."""
        return not (self._measured or self._resumed) and time.monotonic() - self._began < REFUSED_WITHIN

    @_guarded
    def drop(self) -> None:
        """Delete the run, and the row that was made for it alone; where the store fails, `sync` does later."""
        self._spool.append({"op": "dropped"})
        if self._sender and self._sender.wait(self._sender.drop(), WAIT_REMOTE):
            self._sender.give_back()
        self._spool.close()

    def settle(self) -> None:
        """See `Run`."""
        if self.required and self._sender:
            self._sender.wait(self._sender.push(), None)
            self.check()

    @_guarded
    def _append_end(self, op: Op) -> None:
        self._spool.append(op)
        self._spool.sync()

    @_guarded
    def _note_time(self, seconds: float) -> None:
        params = self._start["params"]
        where = times.machine(params["runtime.device"], params["runtime.processes"])
        facts = {"seconds": seconds, "machine": where, "resumed": self._resumed}
        times.note(self._root, stage=self._start["stage"], output=self._output, **facts)

    def check(self, further: str = "") -> None:
        """See `Run`; the error names reason and remedy, and ends with `further`."""
        if self.required and self._sender and self._sender.error:
            raise UserError(
                f"tracking.mode: `required`, but MLflow at {store_name(self._root)} failed ({self._sender.error}); see "
                f"to the server and to MLFLOW_TRACKING_URI, or set tracking.mode to best_effort, and run again{further}"
            )

    def _warn_failed(self) -> None:
        """Log once, in `best_effort`, that what is logged stays in the spool; the sender's thread may ask at once."""
        with self._warning:
            if not self.required and not self._warned:
                self._warned = True
                log.warning("%s", self.info)


def _points(values: Mapping[str, float], step: int | None) -> list[tuple[str, float, int | None, int]]:
    """Return points as (name, value, step, time)."""
    at = now()
    return [(safe_name(name), float(value), step, at) for name, value in values.items()]
