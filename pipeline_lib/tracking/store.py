"""The store: carries out the operations of a spool (see `spool`) on a run and its row; twice is the same as once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_lib.tracking import rows
from pipeline_lib.tracking.client import Client, Record
from pipeline_lib.tracking.spool import Op, Spool, now
from pipeline_lib.tracking.text import reason

log = logging.getLogger("pipeline_lib.tracking")
NAMES_PER_TAG = 30  # a name has up to 250 characters, a tag up to 8000


@dataclass
class Target:
    """The run and row on which the operations of a spool are carried out."""

    run_id: str
    row_id: str
    is_latest: bool  # False: the row has a later run of the stage already
    stage: str
    uid: str  # of the run
    spool: Spool
    began: int  # milliseconds since 1970
    seen: set[tuple[Any, ...]]  # identities of the points that the run already had


class Store:
    """Carries out the operations of spools.

    Args:
        client: The experiment that they change.
        strict: Raise where MLflow refuses a value, instead of saying so and leaving it out.
    """

    def __init__(self, client: Client, *, strict: bool = True) -> None:
        self.client, self._strict = client, strict

    def apply(self, op: Op, spool: Spool, target: Target | None) -> Target | None:
        """Carry out one operation; return the target of the next ones."""
        from mlflow.exceptions import MlflowException

        if op["op"] == "start":
            with self.client.locked():
                return _start(self.client, op, spool)
        if target is None or op["op"] == "dropped":
            return target  # the line that began the run was lost: nothing can be sent; or `delete_runs` is next
        try:
            OPERATIONS[op["op"]](self.client, op, target)
        except MlflowException as error:
            if self._strict or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            log.warning("MLflow refuses what the stage logged (%s): left out", reason(error))
        return target

    def log_system(self, target: Target, values: Mapping[str, float]) -> None:
        """Log a sample of the machine's load under the names that MLflow's page knows, by seconds since the start."""
        seconds = (now() - target.began) // 1000
        self.client.log(target.run_id, points=[[f"system/{name}", v, seconds, now()] for name, v in values.items()])


def _start(client: Client, op: Op, spool: Spool) -> Target:
    run = next(iter(client.find({"run.uid": op["uid"]})), None)
    _end_killed(client, but=op["uid"])
    row = client.run(run.tags["mlflow.parentRunId"]) if run and not op.get("resumed") else None
    row = rows.find_or_create(client, op) if row is None or row.deleted else row
    client.log_missing(row, op["params"])
    is_latest = not rows.is_superseded(client, row, op)
    run_id = _reopen(client, run, row, op) if run else _create_run(client, row, op)
    if is_latest:
        now_running = {f"stage.{op['stage']}": "running", f"stage.{op['stage']}.run_id": run_id}
        client.log(row.run_id, tags={**op["tags"], **now_running})
        rows.clear_error(client, row, op["stage"])
        client.mlflow.update_run(row.run_id, status="RUNNING")
    rows.link_upstream(client, row.run_id, run_id, op["upstream"])
    began, seen = (run.began, _points_of(client, run)) if run else (op["time"], set())
    return Target(run_id, row.run_id, is_latest, op["stage"], op["uid"], spool, began, seen)


def _create_run(client: Client, row: Record, start: Op) -> str:
    """Create the run below its row; return its id."""
    tags = {
        "kind": "stage",
        "stage": start["stage"],
        "run.uid": start["uid"],
        "pipeline.workspace": client.workspace,
        "mlflow.parentRunId": row.run_id,
        "mlflow.source.name": start["source"],
        "mlflow.note.content": start["about"],
        **start["tags"],
    }
    run = client.create(f"{start['stage']} {row.name}", start["time"], tags)  # the curves of many rows share a table
    client.log_missing(run, start["params"])
    return run.run_id


def _reopen(client: Client, run: Record, row: Record, start: Op) -> str:
    """Go on with a run that a killed process began, or a delivery that was cut off; return its id."""
    tags = {"mlflow.parentRunId": row.run_id}
    if start.get("resumed"):
        tags["resumed"] = str(int(run.tags.get("resumed", "0")) + 1)
    client.log(run.run_id, tags=tags)
    client.log_missing(run, start["params"])
    client.mlflow.update_run(run.run_id, status="RUNNING")
    return run.run_id


def _end_killed(client: Client, *, but: str) -> None:
    """End as KILLED the runs of this workspace that say RUNNING though their process is gone, but for one uid."""
    tags = {"kind": "stage", "pipeline.workspace": client.workspace}
    for run in client.find(tags, status="RUNNING", limit=100):
        stage, row_id = run.tags["stage"], run.tags["mlflow.parentRunId"]
        spool = Spool.of(client.root, stage, run.tags["run.uid"])
        if run.tags["run.uid"] == but or spool.is_alive() or spool.last().get("op") == "end":
            continue  # the last: it ended well, and waits to be sent
        if client.run(run.run_id).status == "RUNNING":  # not: it ended since we asked
            client.mlflow.set_terminated(run.run_id, "KILLED")
            row = client.run(row_id)
            if row.tags.get(f"stage.{stage}.run_id") == run.run_id and not row.deleted:
                client.log(row_id, tags={f"stage.{stage}": "killed"})
                rows.end(client, row_id, now())


def _points_of(client: Client, run: Record) -> set[tuple[Any, ...]]:
    """Return the identities of all points that the run has, system metrics aside."""
    names = [name for name in run.metrics if not name.startswith("system/")]
    points = [point for name in names for point in client.mlflow.get_metric_history(run.run_id, name)]
    return {(p.key, p.step) for p in points} | {(p.key, "at", p.timestamp) for p in points}


def _identity(name: str, value: float, step: int | None, at: int) -> tuple[Any, ...]:
    """Return what makes a point the same point: its step in a curve, else the time at which it was logged."""
    return (name, "at", at) if step is None or name.startswith("system/") else (name, step)


def _metrics(client: Client, op: Op, target: Target) -> None:
    client.log(target.run_id, points=[p for p in op["points"] if _identity(*p) not in target.seen])


def _headline(client: Client, op: Op, target: Target) -> None:
    known, metrics = rows.headlines_of(client.run(target.run_id)), [name for name, *_ in op["points"]]
    names = list(dict.fromkeys([*known, *metrics, *op["texts"]]))
    pages = range(0, len(names), NAMES_PER_TAG)
    tags = {f"headline.{number}": "\n".join(names[at : at + NAMES_PER_TAG]) for number, at in enumerate(pages)}
    client.log(target.run_id, points=op["points"], tags={**tags, **op["texts"]})
    if _updates_row(client, target):
        client.log(target.row_id, points=op["points"], tags=op["texts"])
        with client.locked():
            rows.add_columns(client, metrics)


def _artifact(client: Client, op: Op, target: Target) -> None:
    if not (file := target.spool.file_of(op)).is_file():
        return  # a delivery was cut off while it removed the spool
    client.mlflow.log_artifact(target.run_id, str(file), op["folder"] or None)
    if op.get("on_row") and _updates_row(client, target):
        client.mlflow.log_artifact(target.row_id, str(file), op["folder"] or None)


def _dataset(client: Client, op: Op, target: Target) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": op["name"]})
    data = Dataset(op["name"], op["digest"][:36], "local", source, profile=json.dumps({"digest": op["digest"]}))
    tags = [InputTag("mlflow.data.context", op["context"])]
    for run_id in (target.run_id, *([target.row_id] if _updates_row(client, target) else [])):
        client.mlflow.log_inputs(run_id, [DatasetInput(data, tags)])


def _output(client: Client, op: Op, target: Target) -> None:
    client.log(target.run_id, tags={"out.digest": op["digest"]})
    if _updates_row(client, target):
        client.log(target.row_id, tags={f"stage.{target.stage}.digest": op["digest"]})


def _end(client: Client, op: Op, target: Target) -> None:
    state, message = rows.STATES[op["status"]], op.get("message")
    client.log(target.run_id, points=_seconds(client, op, target), tags={"error": message} if message else None)
    client.mlflow.set_terminated(target.run_id, op["status"], op["time"])
    if _updates_row(client, target):
        error = {"error": f"{target.stage} {state}: {message}"} if message else {}
        client.log(target.row_id, tags={f"stage.{target.stage}": state, **error})
        rows.end(client, target.row_id, op["time"])
    delete_runs(client, target.uid, keep_run=target.run_id, keep_row=target.row_id)


def _seconds(client: Client, op: Op, target: Target) -> list[list[Any]]:
    """Return the point of the time that the stage took, with what it took before it was stopped and resumed."""
    name = f"time/{target.stage}_seconds"
    before = sorted(client.mlflow.get_metric_history(target.run_id, name), key=lambda point: point.step)
    if "seconds" not in op or any(point.timestamp == op["time"] for point in before):
        return []
    return [[name, op["seconds"] + (before[-1].value if before else 0.0), len(before), op["time"]]]


def delete_runs(client: Client, uid: str, *, keep_run: str = "", keep_row: str = "") -> None:
    """Delete all runs of this uid, and rows made for it without other runs, but for those to keep.

    A request of a delivery that was cut off may arrive when that has been repeated, and make a second run or row.
    """
    for run in client.find({"run.uid": uid}, limit=10):
        if run.run_id != keep_run:
            client.mlflow.delete_run(run.run_id)
            rows.forget(client, run)
    for row in client.find({"row.uid": uid}, limit=10):
        if row.run_id != keep_row and not client.find({"mlflow.parentRunId": row.run_id}):
            client.mlflow.delete_run(row.run_id)


def _updates_row(client: Client, target: Target) -> bool:
    """Return whether the row shows what the run logs: not if it has a later run of the stage, or was deleted."""
    return target.is_latest and not client.run(target.row_id).deleted


# By their names in a spool.
OPERATIONS = {op.__name__[1:]: op for op in (_metrics, _headline, _artifact, _dataset, _output, _end)}
