"""A folder with params.yaml and an empty MLflow store of its own, for tests that log for real.

MLflow needs 3 to 5 seconds to make a sqlite store; it is made once for each test process and copied.
"""

import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from pipeline_lib import tracking
from pipeline_lib.core import config
from pipeline_lib.tracking.settings import TrackingSettings

REPOSITORY = Path(__file__).parents[1]
CLOSED = "http://user:hunter2@127.0.0.1:9"  # the discard port: nothing listens
ENVIRONMENT = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
    *("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "RANK", "SLURM_PROCID"),
)
LOOP = """
    import time
    from pathlib import Path
    from pipeline_lib import tracking

    checkpoint = Path("checkpoint")
    with tracking.stage_run("refine", Path("params.yaml")) as run:
        first = 0
        if checkpoint.exists():
            run_id, text = checkpoint.read_text().split()
            run.resume(run_id)
            first = int(text)
        for step in range(first, 30):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            if step == 9 and first == 0:
                run.flush()
                checkpoint.write_text(f"{run.run_id} 10")
            if step == 15 and first == 0:
                run.flush()  # these points are in the store, or in the spool, but behind the checkpoint
                print("there", flush=True)
                time.sleep(60)
        run.output("digest")
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Neither the developer's shell nor an earlier test decides where runs go. Import it, and it is used."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def kill(process: subprocess.Popen, *, with_sender: bool = False) -> None:
    """SIGKILL, which no process can answer; `with_sender` also for the process that sends (the power is cut)."""
    children = psutil.Process(process.pid).children(recursive=True) if with_sender else []
    for child in children:
        child.kill()
    process.kill()
    process.communicate()


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def do(stage: str, params: Path, output: str = "", upstream: dict | None = None, **headline: float | str) -> None:
    """One tiny stage."""
    with tracking.stage_run(stage, params, upstream=upstream) as run:
        run.log_metrics({f"{stage.split('@')[0]}/value": 1.0})
        run.headline({name.replace("__", "/"): value for name, value in headline.items()})
        run.output(output or f"digest of {stage}")


def log_note(run: tracking.Run, folder: str = "") -> None:
    """A small text file as an artifact."""
    with tempfile.TemporaryDirectory() as scratch:
        note = Path(scratch) / "note.md"
        note.write_text("a note")
        run.log_artifact(note, folder)


def python(code: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """A process of its own that runs `code` with this package."""
    env = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT} | {"PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@functools.cache
def empty_store() -> Path:
    """A sqlite store with MLflow's tables and nothing in them."""
    from mlflow import MlflowClient

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    path = Path(tempfile.mkdtemp(prefix="mlflow-template-")) / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


def make_project(folder: Path, *, mode: str = "required", store: bool = True, **changes: str) -> Path:
    """Write params.yaml below `folder` (the repository's, with `old: new` text changes); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if store:
        shutil.copyfile(empty_store(), folder / "mlflow.db")
    path = folder / "params.yaml"
    shutil.copyfile(REPOSITORY / "params.yaml", path)
    change(path, "mode: best_effort", f"mode: {mode}")
    assert config.load(path, TrackingSettings).mode == mode
    return path


def change(params_file: Path, old: str, new: str) -> None:
    """Replace text that stands once in params.yaml."""
    text = params_file.read_text()
    assert text.count(old) == 1, old
    params_file.write_text(text.replace(old, new))


def client_of(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs_of(client, kind: str) -> list:
    """Rows (`pipeline`) or stage runs (`stage`), oldest first."""
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids, f"tags.kind = '{kind}'", order_by=["attributes.start_time ASC"])


def curve(client, run_id: str, name: str) -> list[tuple[int, float]]:
    """All points of a metric as (step, value), sorted."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def doubled_points(root: Path) -> list[tuple]:
    """Points of stage runs that share run, name and step: read from the database itself, past MLflow's views."""
    count = defaultdict(int)
    with sqlite3.connect(root / "mlflow.db") as database:
        for row in database.execute("select m.run_uuid, m.key, m.step from metrics m"):
            count[row] += 1
    return [row for row, times in count.items() if times > 1]


def content(root: Path) -> dict:
    """All that a store holds, with run ids replaced by names and without what differs between two executions."""
    client = client_of(root)
    runs = [*runs_of(client, "pipeline"), *runs_of(client, "stage")]
    names = {run.info.run_id: run.info.run_name for run in runs}
    volatile = ("run.uid", "row.uid", "pipeline.workspace", "mlflow.note.content")
    return {
        run.info.run_name: {
            "status": run.info.status,
            "params": run.data.params,
            "tags": {k: names.get(v, v) for k, v in run.data.tags.items() if k not in volatile},
            "curves": {
                n: curve(client, run.info.run_id, n) for n in run.data.metrics if not n.startswith(("time/", "system/"))
            },
            "times": sorted(n for n in run.data.metrics if n.startswith("time/")),
            "inputs": [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
            "artifacts": [file.path for file in client.list_artifacts(run.info.run_id)],
        }
        for run in runs
    }
