"""The client of MLflow: one experiment, the runs in it, and logging within MLflow's limits."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking import database, place, views
from pipeline_lib.tracking.spool import now

MAX_POINTS, MAX_TEXTS = 800, 100  # for one request; MLflow's limits: 1000 things in all, 100 parameters, 100 tags


def prepare_environment(mode: str) -> None:
    """Set short waits (unless the user has set others), no telemetry, no chatter; call it before importing mlflow."""
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


class Client:
    """MLflow's client for the experiment of one project.

    Args:
        root: The project's root.
        experiment: Name of the MLflow experiment.
        create: Create the experiment where it is missing.

    Raises:
        UserError: The experiment was deleted, or the store is broken.
        LookupError: It is missing and shall not be created.
        MlflowException: The store cannot be reached or is of another version.
    """

    def __init__(self, root: Path, experiment: str, *, create: bool = True) -> None:
        from mlflow import MlflowClient

        self.root = root
        # MLflow's own experiment, `Default`, keeps its artifacts in what was then the current folder, perhaps a
        # temporary one.
        with self.locked(), chdir(root):
            self.workspace = place.workspace(root)  # tells the rows of clones that share a store apart
            file, location = place.store_file(root), place.artifact_location(root)
            if file and location:
                database.make_whole(file)
                database.follow_move(file, location)
            self.mlflow = MlflowClient(place.store_uri(root), registry_uri=place.store_uri(root))
            self.experiment_id = self._experiment(experiment, create=create)

    def _experiment(self, name: str, *, create: bool) -> str:
        from mlflow.exceptions import MlflowException

        found = self.mlflow.get_experiment_by_name(name)
        if found is None and not create:
            raise LookupError(f"it has no experiment {name} yet")
        if found is None:
            try:
                location = place.artifact_location(self.root)
                return self.mlflow.create_experiment(name, location, views.experiment_tags(now()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.mlflow.get_experiment_by_name(name)  # another machine was faster
        if found.lifecycle_stage != "active":
            raise UserError(f"tracking.experiment: `{name}` was deleted; restore it in MLflow or choose another name")
        return found.experiment_id

    def refresh_views(self) -> None:
        """Bring the experiment's description and saved views to the form that this version gives a new one."""
        tags = self.mlflow.get_experiment(self.experiment_id).tags
        for name, text in views.changed_tags(tags, now()).items():
            self.mlflow.set_experiment_tag(self.experiment_id, name, text)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time make the store, or find and create a row."""
        path = place.lock_file(self.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def run(self, run_id: str) -> Record:
        """Return a run by its id; one that MLflow no longer has as a deleted one of which nothing is known."""
        from mlflow.exceptions import MlflowException

        try:
            return _record(self.mlflow.get_run(run_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return Record(run_id, "", "", {}, {}, {}, began=0, deleted=True)

    def find(self, tags: Mapping[str, str], *, status: str = "", limit: int = 1) -> list[Record]:
        """List the newest runs with these tags (and this status), at most `limit`."""
        filters = [f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items()]
        filters += [f"attributes.status = '{status}'"] if status else []
        runs = self.mlflow.search_runs(
            [self.experiment_id], " and ".join(filters), max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [_record(run) for run in runs]

    def producer(self, stage: str, output: str) -> Record | None:
        """Return the newest finished run of `stage` whose output has the digest `output`; None if there is none."""
        tags = {"kind": "stage", "stage": stage, "out.digest": output}
        return next(iter(self.find(tags, status="FINISHED")), None)

    def create(self, name: str, began: int, tags: Mapping[str, str]) -> Record:
        """Create a run."""
        return _record(self.mlflow.create_run(self.experiment_id, began, tags, name))

    def log(
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
            self.mlflow.log_batch(run_id, metrics[:MAX_POINTS], texts[:MAX_TEXTS], labels[:MAX_TEXTS])
            metrics, texts, labels = metrics[MAX_POINTS:], texts[MAX_TEXTS:], labels[MAX_TEXTS:]

    def log_missing(self, run: Record, params: Mapping[str, str]) -> None:
        """Log the parameters that the run does not have; those that it has cannot be changed."""
        self.log(run.run_id, params={name: value for name, value in params.items() if name not in run.params})


def store_errors() -> type[Exception]:
    """Return the exception that MLflow raises, whether a server or a database failed."""
    from mlflow.exceptions import MlflowException

    return MlflowException


def _record(run: Any) -> Record:
    info, data = run.info, run.data
    deleted = info.lifecycle_stage == "deleted"
    return Record(
        info.run_id, info.run_name, info.status, data.tags, data.metrics, data.params, info.start_time, deleted
    )


def _quoted(value: str) -> str:
    """Quote a text for MLflow's filters, which know no escape sign."""
    return f'"{value}"' if "'" in value else f"'{value}'"
