"""What tracking costs: the steps and the whole of a refine run, and the start of each stage, with MLflow and without.

    python -m tests.bench_tracking

The store is a local sqlite file that is there already, as it is from the second stage on, or a server that is down.
Modes take turns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline_lib import config
from tests.bench_inputs import Report, quiet, write_small_set
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, STAGES, change, make_project, write_params, yaml
from tests.tracked_project import ENVIRONMENT, empty_store

PATIENCE = 10.0  # seconds that a stage may take longer
DOWN = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # the discard port: nothing listens
STEPS = """
import json
from pipeline_lib import training
from stages import refine

build = training.build

def told(*arguments):
    made = build(*arguments)
    print(json.dumps(made["metrics"]), flush=True)
    return made

training.build = told
refine.main()
"""
START = """
import importlib, sys, time
from contextlib import contextmanager
from pipeline_lib import tracking

stage_run = tracking.stage_run

@contextmanager
def told(*arguments, **named):
    with stage_run(*arguments, **named):
        print(time.time() - float(sys.argv[2]), flush=True)
        raise SystemExit(0)
    yield

tracking.stage_run = told
importlib.import_module(f"stages.{sys.argv[1]}").main()
"""


def run(project: Path, code: str, mode: str, *arguments: str, more: dict[str, str] | None = None) -> str:
    """Run `code` in `project` with this `tracking.mode` (and environment); returns the last line that it printed."""
    params = change(config.read_params(project / "params.yaml"), {"tracking.mode": mode})
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    environment |= {"PYTHONPATH": str(ROOT), **(more or {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def refinement(report: Report, root: Path, rounds: int = 2) -> None:
    """Several hundred short steps, so that a point is logged often; `required` waits for the store, so costs most."""
    modes = {"without": ("disabled", {}), "required": ("required", {}), "server down": ("best_effort", DOWN)}
    project = root / "refine"
    write_small_set(project / "set", 1000)
    (project / "more").mkdir()
    write_tiny_clip(project / "clip", seed=1)
    sizes = {"shard__samples_per_shard": 500, "refine__batch_size": 64, "refine__epochs": 40}
    write_params(project, runtime__num_threads=None, cache_teacher__chunk_size=64, **sizes)
    for stage in ("base", "shard", "cache_teacher"):
        quiet(stage, project)
    shutil.copyfile(empty_store(), project / "mlflow.db")
    speeds: dict[str, list[float]] = {name: [] for name in modes}
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for number in range(rounds + 1):
        for name, (mode, environment) in modes.items():
            shutil.rmtree(project / "data/refined", ignore_errors=True)
            began = time.perf_counter()
            made = json.loads(run(project, STEPS, mode, more=environment))
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
                speeds[name].append(made["pairs_per_second"])
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    stage = {name: statistics.median(values) for name, values in seconds.items()}
    for name in list(modes)[1:]:
        label, added = name.replace(" ", "_"), stage[name] - stage["without"]
        pairs = f"{speed['without']:.0f} pairs/s without, {speed[name]:.0f} with; {made['num_steps']:.0f} steps"
        report(f"tracking_step_loop_{label}", speed[name] / speed["without"], 0.98, pairs)
        note = f"adds {added:.1f} s to {stage['without']:.1f} s; the ratio is {PATIENCE:.0f} s to that"
        report(f"tracking_whole_stage_{label}", PATIENCE / max(added, 0.01), 1.0, note)


def starts(report: Report, root: Path, rounds: int = 1) -> None:
    """From the command to the first line of the work."""
    project = make_project(root / "starts")
    for stage in STAGES[:-1]:
        quiet(stage, project)
    shutil.copyfile(empty_store(), project / "mlflow.db")
    for stage in STAGES:
        seconds: dict[str, list[float]] = {"disabled": [], "best_effort": []}
        for number in range(rounds + 1):
            for mode, values in seconds.items():
                taken = float(run(project, START, mode, stage, str(time.time())))
                values += [taken] if number else []
        off, on = (statistics.median(values) for values in seconds.values())
        note = f"{off:.2f} s without, {on:.2f} s with best_effort"
        report(f"tracking_start_{stage}", off / on, 0.9, note)


def measure(report: Report) -> None:
    """Both, in folders that go afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        refinement(report, Path(folder))
        starts(report, Path(folder))


if __name__ == "__main__":
    from tests.bench import report

    measure(report)
