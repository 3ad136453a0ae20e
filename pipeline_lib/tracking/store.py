"""The store: everything here, and nothing elsewhere, talks to MLflow (always `MlflowClient`, imported when first used).

Each operation of a spool may be carried out twice with the result of once: a run is found by its own id, a row by its
configuration, and a point that is already there is left out.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.tracking import views
from pipeline_lib.tracking.describe import now, public, store_uri, workspace
from pipeline_lib.tracking.spool import Op, Spool

log = logging.getLogger("pipeline_lib.tracking")

MAX_POINTS, MAX_TEXTS = 800, 100  # for one request; MLflow's limits: 1000 things in all, 100 parameters, 100 tags
NAMES_PER_TAG = 30  # a name has up to 250 characters, a tag up to 8000
DONE = ("executed", "reused")
STATES = {"FINISHED": "executed", "FAILED": "failed", "KILLED": "killed"}


def prepare_environment(mode: str) -> None:
    """Short waits where the user has not set others, no telemetry, no chatter; precedes the import of mlflow."""
    retries, seconds = {"required": ("3", "30")}.get(mode, ("1", "4"))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", seconds)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for talkative in ("urllib3.connectionpool", "mlflow.store.db.utils"):  # retries and tracebacks; we say it once
        logging.getLogger(talkative).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Record:
    """A run as the store has it."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    began: int  # milliseconds since 1970
    deleted: bool


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


class Store:
    """The MLflow store of a project: rows, runs, and the operations of a spool.

    Args:
        root: The project's root.
        experiment: Name of the MLflow experiment, created where it is missing.
        strict: Raise where MLflow refuses a value, instead of saying so and leaving it out.
        create: Create the experiment where it is missing.

    Raises:
        UserError: The experiment was deleted.
        LookupError: It is missing and shall not be created.
        MlflowException: The store cannot be reached or is of another version.
    """

    def __init__(self, root: Path, experiment: str, *, strict: bool = True, create: bool = True) -> None:
        from mlflow import MlflowClient

        self.root, self._strict, self._workspace = root, strict, workspace(root)
        self._operations = {
            "metrics": self._metrics,
            "headline": self._headline,
            "artifact": self._artifact,
            "dataset": self._dataset,
            "output": self._output,
            "end": self._end,
            "dropped": self._dropped,
        }
        # A fresh sqlite store is migrated by the constructor, which two processes must not do at once; and MLflow's
        # own experiment, `Default`, keeps its artifacts in what was then the current folder, perhaps a temporary one.
        with self._locked(), chdir(root):
            self.client = MlflowClient(store_uri(root), registry_uri=store_uri(root))
            self.experiment_id = self._experiment(experiment, create=create)

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

    def find(self, tags: Mapping[str, str], *, status: str = "", limit: int = 1) -> list[Record]:
        """The newest runs with these tags."""
        filters = [f"tags.`{name}` = {quoted(value)}" for name, value in tags.items()]
        filters += [f"attributes.status = '{status}'"] if status else []
        runs = self.client.search_runs(
            [self.experiment_id], " and ".join(filters), max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [self._record(run) for run in runs]

    def producer(self, stage: str, output: str) -> Record | None:
        """The newest finished run of `stage` whose output has this digest."""
        tags = {"kind": "stage", "stage": stage, "out.digest": output}
        return next(iter(self.find(tags, status="FINISHED")), None)

    @staticmethod
    def _record(run: Any) -> Record:
        info, data = run.info, run.data
        deleted = info.lifecycle_stage == "deleted"
        return Record(
            info.run_id, info.run_name, info.status, data.tags, data.metrics, data.params, info.start_time, deleted
        )

    def _experiment(self, name: str, *, create: bool) -> str:
        """The experiment's id. Its artifacts get an explicit place; the default is the current folder, which may go."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None and not create:
            raise LookupError(f"it has no experiment {name} yet")
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_place(self.root), views.experiment_tags(now()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another machine was faster
        if found.lifecycle_stage != "active":
            raise UserError(f"tracking.experiment: `{name}` was deleted; restore it in MLflow or choose another name")
        return found.experiment_id

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of this project at a time: for creating the store and for finding or creating a row."""
        with (self.root / "mlflow.db.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

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

    # Rows

    def _close_row(self, row: Record, time: int) -> None:
        """End a row as the worst of its stages did."""
        states = {value for name, value in row.tags.items() if re.fullmatch(r"stage\.[^.]+", name)}
        status = next((status for status in ("FAILED", "KILLED") if STATES[status] in states), "FINISHED")
        if status != row.status:
            self.client.set_terminated(row.run_id, status, time)

    def _speaks_for_row(self, target: Target) -> bool:
        """Whether what a run says is said of its row too: not if a later run did, or somebody deleted the row."""
        return target.owns_row and not self.run(target.row_id).deleted

    def _is_superseded(self, row: Record, op: Op) -> bool:
        """Whether a later run of the stage is in the row already: this one was delivered late."""
        later = row.tags.get(f"stage.{op['stage']}.run_id", "unknown")
        if later == "unknown":
            return False
        run = self.run(later)
        return run.began > op["time"] and run.tags.get("run.uid") != op["uid"]

    def _forget_error(self, row: Record, stage: str) -> None:
        """The stage that left the row's error goes on, or its output is there after all."""
        if row.tags.get("error", "").startswith(f"{stage} "):
            self.client.delete_tag(row.run_id, "error")

    def _delete_others(self, uid: str, *, run_id: str, row_id: str) -> None:
        """Delete what requests that seemed lost have made for run `uid`, but these two, and no row with other runs."""
        for run in self.find({"run.uid": uid}, limit=10):
            if run.run_id != run_id:
                self.client.delete_run(run.run_id)
        for row in self.find({"row.uid": uid}, limit=10):
            if row.run_id != row_id and not self.find({"mlflow.parentRunId": row.run_id}):
                self.client.delete_run(row.run_id)

    def join(self, op: Op) -> Record:
        """The row that this stage belongs to: the newest of its configuration, or a new one if that has the stage."""
        newest = self._newest_row(op, "pipeline.key")
        free = newest and (newest.tags.get(f"stage.{op['stage']}") not in DONE or self._is_superseded(newest, op))
        return newest if newest and free else self._create_row(op)

    def row_of(self, op: Op) -> Record | None:
        """The newest row of this configuration in this workspace, under this name if it is a DVC experiment."""
        experiment = ("dvc.exp_name", "dvc.exp_baseline") if "dvc.exp_name" in op["tags"] else ()
        return self._newest_row(op, "pipeline.config", *experiment)

    def _newest_row(self, op: Op, *names: str) -> Record | None:
        tags = {"kind": "pipeline", "pipeline.workspace": self._workspace, **{n: op["tags"][n] for n in names}}
        return next(iter(self.find(tags)), None)

    def fill(self, op: Op, outputs: Mapping[str, str], headlines: Mapping[str, float | str]) -> Record | None:
        """Complete the row of a configuration whose outputs are all there, by whatever means they came.

        Args:
            op: `describe` of any stage.
            outputs: Digest of the output's manifest, by stage.
            headlines: What the report's own file says, for a row whose report no run of this store made.

        Returns:
            The newest row of the configuration, or a new one; None where the store knows none of the outputs.
        """
        with self._locked():
            known = self.row_of(op)
            if known is None and not any(self.producer(stage, output) for stage, output in outputs.items()):
                return None
            row = known or self._create_row(op)
            for stage, output in outputs.items():
                self.mark_reused(self.run(row.run_id), stage, output)
            self._log(row.run_id, tags={"dvc.lock": op["tags"].get("dvc.lock", "")})
            self._log_missing(row, op["params"])
            self._fill_headlines(self.run(row.run_id), headlines)
            filled = self.run(row.run_id)
            for stage in outputs:
                if filled.tags.get(f"stage.{stage}") in DONE:
                    self._forget_error(filled, stage)
            if known is None or known.status != "RUNNING":
                self._close_row(filled, now())
            self._name_unknown(outputs)
        return self.run(row.run_id)

    def _fill_headlines(self, row: Record, headlines: Mapping[str, float | str]) -> None:
        missing = {name: v for name, v in headlines.items() if name not in row.metrics and name not in row.tags}
        numbers = {name: value for name, value in missing.items() if not isinstance(value, str)}
        texts = {name: value for name, value in missing.items() if isinstance(value, str)}
        if missing:
            points = [[name, value, None, now()] for name, value in numbers.items()]
            self._log(row.run_id, points=points, tags={**texts, "headlines.from": "the report's file"})
            self._show(list(numbers))

    def mark_reused(self, row: Record, stage: str, output: str) -> str:
        """Mark `stage`, and what its output came from, as reused on the row, unless the row executed it.

        Returns:
            The run that made the output; `unknown` where the store has none (another store has, or it is in a spool).
        """
        tag = f"stage.{stage}"
        known = row.tags.get(f"{tag}.run_id", "unknown")
        if row.tags.get(tag) in DONE and row.tags.get(f"{tag}.digest") == output and known != "unknown":
            return known
        if self._is_waiting(row, stage, output):
            return "unknown"
        made_by = self.producer(stage, output)
        run_id = made_by.run_id if made_by else "unknown"
        if row.tags.get(tag) != "executed":
            self._log(row.run_id, tags={tag: "reused", f"{tag}.run_id": run_id, f"{tag}.digest": output})
        if made_by is not None:
            self._promote(made_by, row)
            for further, digest in upstream_of(made_by).items():
                self.mark_reused(self.run(row.run_id), further, digest)
        return run_id

    def _is_waiting(self, row: Record, stage: str, output: str) -> bool:
        """Whether the stage was executed for this row, and the run that says so is still to be sent."""
        for spool in Spool.all(self.root):
            first, key = spool.first(), row.tags["pipeline.key"]
            ours = first and first["stage"] == stage and first["tags"]["pipeline.key"] == key
            if ours and any(op["op"] == "output" and op["digest"] == output for op, _ in spool.read()):
                return True
        return False

    def run(self, run_id: str) -> Record:
        """A run by its id."""
        return self._record(self.client.get_run(run_id))

    def _create_row(self, op: Op) -> Record:
        tags = {
            "kind": "pipeline",
            "pipeline.workspace": self._workspace,
            "row.uid": op["uid"],
            "mlflow.source.name": "dvc.yaml",
            "mlflow.note.content": op["note"],
            **op["tags"],
        }
        return self._record(self.client.create_run(self.experiment_id, op["time"], tags, op["row"]))

    def _promote(self, made_by: Record, row: Record) -> None:
        """Copy a reused run's headlines to the row, where they are missing."""
        names = [name for name in headlines_of(made_by) if name not in row.metrics and name not in row.tags]
        points = [[name, made_by.metrics[name], None, now()] for name in names if name in made_by.metrics]
        texts = {name: made_by.tags[name] for name in names if name in made_by.tags}
        self._log(row.run_id, points=points, tags=texts)

    def _show(self, metrics: Sequence[str]) -> None:
        """Give these metrics of rows a column each in the experiment's view."""
        known = self.client.get_experiment(self.experiment_id).tags
        for name, view in views.configurations(known, metrics, now()).items():
            self.client.set_experiment_tag(self.experiment_id, name, view)

    def _link_upstream(self, row: Record, run_id: str, op: Op) -> None:
        tags = {}
        for stage, output in op["upstream"].items():
            tags[f"upstream.{stage}.digest"] = output
            tags[f"upstream.{stage}.run_id"] = self.mark_reused(self.run(row.run_id), stage, output)
        self._log(run_id, tags=tags)

    def _name_unknown(self, outputs: Mapping[str, str]) -> None:
        """Fill in the producers of these outputs that runs could not know, because they were delivered later."""
        for stage, output in outputs.items():
            waiting = {f"upstream.{stage}.run_id": "unknown", f"upstream.{stage}.digest": output}
            children = self.find({"pipeline.workspace": self._workspace, **waiting}, limit=100)
            if children and (found := self.producer(stage, output)):
                for child in children:
                    self._log(child.run_id, tags={f"upstream.{stage}.run_id": found.run_id})

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

    def _log_missing(self, run: Record, params: Mapping[str, str]) -> None:
        """Log the parameters that the run does not have; those that it has cannot be changed."""
        self._log(run.run_id, params={name: value for name, value in params.items() if name not in run.params})

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

    def _log(
        self,
        run_id: str,
        *,
        points: Sequence[Sequence[Any]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to a run in as few requests as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, at, step or 0) for name, value, step, at in points]
        texts = [Param(name, value) for name, value in (params or {}).items()]
        labels = [RunTag(name, value[:8000]) for name, value in (tags or {}).items()]
        while metrics or texts or labels:
            self.client.log_batch(run_id, metrics[:MAX_POINTS], texts[:MAX_TEXTS], labels[:MAX_TEXTS])
            metrics, texts, labels = metrics[MAX_POINTS:], texts[MAX_TEXTS:], labels[MAX_TEXTS:]


def store_errors() -> type[Exception]:
    """What MLflow raises, whether a server or a database failed."""
    from mlflow.exceptions import MlflowException

    return MlflowException


def quoted(value: str) -> str:
    """A text in MLflow's filters, which know no escape sign."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def artifact_place(root: Path) -> str | None:
    """Where the artifacts of a new experiment go: beside a database that is a file; a server knows itself (None)."""
    uri = store_uri(root)
    if uri.split(":")[0] in ("http", "https", "databricks"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else root
    return (folder / "mlartifacts").as_uri()


def headlines_of(run: Record) -> list[str]:
    """The names of a run's headline numbers, which stand in as many tags as they need."""
    pages = sorted((tag for tag in run.tags if tag.startswith("headline.")), key=lambda tag: int(tag.split(".")[1]))
    return [name for page in pages for name in run.tags[page].splitlines()]


def upstream_of(run: Record) -> dict[str, str]:
    """The digests that a stage's run read, by stage."""
    found = (re.fullmatch(r"upstream\.(.+)\.digest", name) for name in run.tags)
    return {match[1]: run.tags[match[0]] for match in found if match}


def _identity(name: str, value: float, step: int | None, at: int) -> tuple[Any, ...]:
    """What makes a point the same point: its step in a curve, else the moment it was logged."""
    return (name, "at", at) if step is None or name.startswith("system/") else (name, step)


def reason(error: Exception) -> str:
    """The heart of an exception, fit for one line: HTTP and database errors wrap theirs three times."""
    text = str(error)
    if "timed out" in text.lower():
        return "no answer in time"
    for pattern in (
        r"\[Errno -?\d+\] ([\w ]+)",
        r"Error\(\d+, '([\w ]+)'\)",
        r"\(\w+\.\w*Error\) (.+)",
        r"Caused by \w+\('([\w ]+)'",
        r"Caused by (\w+)",
    ):
        if found := re.search(pattern, text):
            return public(found[1])
    return public(text.splitlines()[0])[:200] if text else type(error).__name__
