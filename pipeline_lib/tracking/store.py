"""The store: the operations of a spool, carried out on rows and runs.

Each may be carried out twice with the result of once: a run is found by its own id, a row by its configuration, and a
point that is already there is left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.tracking.client import Record, reason
from pipeline_lib.tracking.describe import now
from pipeline_lib.tracking.rows import STATES, Rows, headlines_of
from pipeline_lib.tracking.spool import Op, Spool

log = logging.getLogger("pipeline_lib.tracking")
NAMES_PER_TAG = 30  # a name has up to 250 characters, a tag up to 8000


@dataclass
class Target:
    """Where the operations of a spool go."""

    run_id: str
    row_id: str
    owns_row: bool  # False: a later run of the stage speaks for the row already
    stage: str
    uid: str  # of the run
    began: int  # milliseconds since 1970
    seen: set[tuple[Any, ...]]  # identities of the points that the run already had


class Store(Rows):
    """The MLflow store of a project: rows, runs, and the operations of a spool.

    Args:
        root: The project's root.
        experiment: Name of the MLflow experiment.
        strict: Raise where MLflow refuses a value, instead of saying so and leaving it out.
        create: Create the experiment where it is missing.

    Raises:
        UserError: See `Client`.
        LookupError: See `Client`.
        MlflowException: See `Client`.
    """

    def __init__(self, root: Path, experiment: str, *, strict: bool = True, create: bool = True) -> None:
        super().__init__(root, experiment, create=create)
        self._strict = strict
        self._operations = {
            "metrics": self._metrics,
            "headline": self._headline,
            "artifact": self._artifact,
            "dataset": self._dataset,
            "output": self._output,
            "end": self._end,
            "dropped": self._dropped,
        }

    def apply(self, op: Op, spool: Spool, target: Target | None) -> Target | None:
        """Carry out one operation; returns where the next ones go. Doing it twice leaves what doing it once does."""
        from mlflow.exceptions import MlflowException

        if op["op"] == "start":
            with self._locked():
                return self._start(op)
        if target is None:
            return None  # the line that began the run was lost: nothing can be sent
        try:
            self._operations[op["op"]](op, spool, target)
        except MlflowException as error:
            if self._strict or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            log.warning("MLflow refuses what the stage logged (%s): left out", reason(error))
        return target

    def log_system(self, target: Target, values: Mapping[str, float]) -> None:
        """Log a sample of the machine's load under the names that MLflow's page knows, by seconds since the start."""
        seconds = (now() - target.began) // 1000
        self._log(target.run_id, points=[[f"system/{name}", v, seconds, now()] for name, v in values.items()])

    def drop(self, uid: str) -> None:
        """Delete a run that was begun for nothing, and the row if it was made for that run alone."""
        self._delete_others(uid, run_id="", row_id="")

    # Operations of a spool: (op, spool, target) -> None

    def _start(self, op: Op) -> Target:
        found = self.find({"run.uid": op["uid"]})
        self._end_the_dead(op)
        row = self.run(found[0].tags["mlflow.parentRunId"]) if found and not op.get("resumed") else self.join(op)
        row = self.join(op) if row.deleted else row
        self._log_missing(row, op["params"])
        owns_row = not self._is_superseded(row, op)
        child = self._reopen(found[0], row, op) if found else self._create_child(row, op)
        if owns_row:
            now_running = {f"stage.{op['stage']}": "running", f"stage.{op['stage']}.run_id": child}
            self._log(row.run_id, tags={**op["tags"], **now_running})
            self._forget_error(row, op["stage"])
            self.client.update_run(row.run_id, status="RUNNING")
        self._link_upstream(row, child, op)
        began, seen = (found[0].began, self._seen(found[0])) if found else (op["time"], set())
        return Target(child, row.run_id, owns_row, op["stage"], op["uid"], began, seen)

    def _metrics(self, op: Op, spool: Spool, target: Target) -> None:
        self._log(target.run_id, points=[p for p in op["points"] if _identity(*p) not in target.seen])

    def _headline(self, op: Op, spool: Spool, target: Target) -> None:
        known, metrics = headlines_of(self.run(target.run_id)), [name for name, *_ in op["points"]]
        names = list(dict.fromkeys([*known, *metrics, *op["texts"]]))
        pages = range(0, len(names), NAMES_PER_TAG)
        tags = {f"headline.{number}": "\n".join(names[at : at + NAMES_PER_TAG]) for number, at in enumerate(pages)}
        self._log(target.run_id, points=op["points"], tags={**tags, **op["texts"]})
        if not self._speaks_for_row(target):
            return
        self._log(target.row_id, points=op["points"], tags=op["texts"])
        with self._locked():
            self._show(metrics)

    def _artifact(self, op: Op, spool: Spool, target: Target) -> None:
        if (file := spool.file_of(op)).is_file():  # not: it was sent by a delivery that was cut off
            self.client.log_artifact(target.run_id, str(file), op["folder"] or None)

    def _dataset(self, op: Op, spool: Spool, target: Target) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": op["name"]})
        data = Dataset(op["name"], op["digest"][:36], "local", source, profile=json.dumps({"digest": op["digest"]}))
        tags = [InputTag("mlflow.data.context", op["context"])]
        for run_id in (target.run_id, *([target.row_id] if self._speaks_for_row(target) else [])):
            self.client.log_inputs(run_id, [DatasetInput(data, tags)])

    def _output(self, op: Op, spool: Spool, target: Target) -> None:
        self._log(target.run_id, tags={"out.digest": op["digest"]})
        if self._speaks_for_row(target):
            self._log(target.row_id, tags={f"stage.{target.stage}.digest": op["digest"]})

    def _end(self, op: Op, spool: Spool, target: Target) -> None:
        state, message = STATES[op["status"]], op.get("message")
        self._log(target.run_id, points=self._seconds(op, target), tags={"error": message} if message else None)
        self.client.set_terminated(target.run_id, op["status"], op["time"])
        if self._speaks_for_row(target):
            said = {"error": f"{target.stage} {state}: {message}"} if message else {}
            self._log(target.row_id, tags={f"stage.{target.stage}": state, **said})
            self._close_row(self.run(target.row_id), op["time"])
        self._delete_others(target.uid, run_id=target.run_id, row_id=target.row_id)

    def _seconds(self, op: Op, target: Target) -> list[list[Any]]:
        """The time that the stage took, with what it took before it was stopped and resumed."""
        name = f"time/{target.stage}_seconds"
        before = sorted(self.client.get_metric_history(target.run_id, name), key=lambda point: point.step)
        if "seconds" not in op or any(point.timestamp == op["time"] for point in before):
            return []
        return [[name, op["seconds"] + (before[-1].value if before else 0.0), len(before), op["time"]]]

    def _dropped(self, op: Op, spool: Spool, target: Target) -> None:
        """Nothing yet: the sender reads this before it is told to `resume`, and removes the run then."""

    def _speaks_for_row(self, target: Target) -> bool:
        """Whether what a run says is said of its row too: not if a later run did, or somebody deleted the row."""
        return target.owns_row and not self.run(target.row_id).deleted

    def _delete_others(self, uid: str, *, run_id: str, row_id: str) -> None:
        """Delete what requests that seemed lost have made for run `uid`, but these two, and no row with other runs."""
        for run in self.find({"run.uid": uid}, limit=10):
            if run.run_id != run_id:
                self.client.delete_run(run.run_id)
        for row in self.find({"row.uid": uid}, limit=10):
            if row.run_id != row_id and not self.find({"mlflow.parentRunId": row.run_id}):
                self.client.delete_run(row.run_id)

    # Runs

    def _create_child(self, row: Record, op: Op) -> str:
        tags = {
            "kind": "stage",
            "stage": op["stage"],
            "run.uid": op["uid"],
            "pipeline.workspace": self._workspace,
            "mlflow.parentRunId": row.run_id,
            "mlflow.source.name": op["source"],
            "mlflow.note.content": op["about"],
            **op["tags"],
        }
        name = f"{op['stage']} {row.name}"  # both: the curves of many rows stand in one table
        run = self._record(self.client.create_run(self.experiment_id, op["time"], tags, name))
        self._log_missing(run, op["params"])
        return run.run_id

    def _reopen(self, child: Record, row: Record, op: Op) -> str:
        tags = {"mlflow.parentRunId": row.run_id}
        if op.get("resumed"):
            tags["resumed"] = str(int(child.tags.get("resumed", "0")) + 1)
        self._log(child.run_id, tags=tags)
        self._log_missing(child, op["params"])  # a delivery that was cut off between two requests
        self.client.update_run(child.run_id, status="RUNNING")
        return child.run_id

    def _end_the_dead(self, op: Op) -> None:
        """Runs of this workspace that say RUNNING but whose process is gone (a power cut) end KILLED."""
        tags = {"kind": "stage", "pipeline.workspace": self._workspace}
        for run in self.find(tags, status="RUNNING", limit=100):
            stage, uid, row_id = (run.tags[name] for name in ("stage", "run.uid", "mlflow.parentRunId"))
            spool = Spool.of(self.root, stage, uid)
            if uid == op["uid"] or spool.is_alive() or spool.last().get("op") == "end":
                continue  # the last: it ended well, and waits to be sent
            if self.run(run.run_id).status == "RUNNING":  # not: it ended since we asked
                self.client.set_terminated(run.run_id, "KILLED")
                row = self.run(row_id)
                if row.tags.get(f"stage.{stage}.run_id") == run.run_id and not row.deleted:
                    self._log(row_id, tags={f"stage.{stage}": "killed"})
                    self._close_row(self.run(row_id), now())

    def _seen(self, child: Record) -> set[tuple[Any, ...]]:
        names = [name for name in child.metrics if not name.startswith("system/")]
        points = [point for name in names for point in self.client.get_metric_history(child.run_id, name)]
        return {(p.key, p.step) for p in points} | {(p.key, "at", p.timestamp) for p in points}


def _identity(name: str, value: float, step: int | None, at: int) -> tuple[Any, ...]:
    """What makes a point the same point: its step in a curve, else the moment it was logged."""
    return (name, "at", at) if step is None or name.startswith("system/") else (name, step)
