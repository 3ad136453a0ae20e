"""What tracking costs: the steps and the whole of a refine run, and the start of each stage, with MLflow and without.

    python -m tests.bench tracking

The store is a local sqlite file that is there already, as it is from the second stage on, or a server that is down.
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

from pipeline_lib.core import config
from tests.bench.inputs import Report, quiet, write_small_set
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, STAGES, change, make_project, write_params, yaml
from tests.tracked_project import ENVIRONMENT, empty_store

PATIENCE = 10.0  # seconds that a stage may take longer
DOWN = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # the discard port: nothing listens
Child = subprocess.Popen[str]
STEPS = """
import json, os, shutil, sys, time
began = time.perf_counter()
os.sched_setaffinity(0, {int(sys.argv.pop())})  # before a library counts the processors
shutil.rmtree("data/refined", ignore_errors=True)
import psutil
from pipeline_lib.refine import loop
from pipeline_lib.tracking.run import TrackedRun
from stages import refine

def counted(method):
    def call(*arguments, **named):
        before = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            global called
            called += time.perf_counter() - before
    return call

def marked(*arguments):
    sent = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())
    marks.append({"at": time.perf_counter(), "calls": called, "sender": sent})
    return take_step(*arguments)

called, marks, take_step = 0.0, [], loop.take_step
loop.take_step = marked
for name in ("log_metrics", "flush", "check"):
    setattr(TrackedRun, name, counted(getattr(TrackedRun, name)))
refine.main()
print(json.dumps({"marks": marks, "stage": time.perf_counter() - began}))
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


def start(project: Path, code: str, mode: str, *arguments: str, more: dict[str, str] | None = None) -> Child:
    """Start `code` in `project` with this `tracking.mode` (and environment)."""
    params = change(config.read_params(project / "params.yaml"), {"tracking.mode": mode})
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    environment |= {"PYTHONPATH": str(ROOT), **(more or {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(child: Child) -> str:
    """Wait for the end; the last line that it printed."""
    printed, errors = child.communicate()
    assert child.returncode == 0, errors
    return printed.splitlines()[-1]


def refinement(report: Report, root: Path, rounds: int = 3) -> None:
    """Hundreds of short steps, so that a point is logged often; `required` waits for the store, so costs most.

    Two runs at a time, with tracking and without, each on a core of its own that its sender has to share: what else
    the machine does slows both. They change cores each round. The loop's ratio is counted in the run with tracking
    (time within its calls, and processor time of the sender), which is finer than two clocks can tell.
    """
    modes = {"required": ("required", {}), "server_down": ("best_effort", DOWN)}
    cores = sorted(os.sched_getaffinity(0))[:2]
    assert len(cores) == 2, "two processors are needed, for the run with tracking and the one without"
    made = _make_projects(root)
    for name, (mode, environment) in modes.items():
        shares, clocks, added = [], [], []
        for number in range(rounds):
            without, tracked = (
                start(made[i], STEPS, m, str(cores[(number + i) % 2]), more=e)
                for i, (m, e) in enumerate([("disabled", {}), (mode, environment)])
            )
            a, b = (json.loads(last_line(child)) for child in (without, tracked))
            spent, plain = _spent(b["marks"]), _spent(a["marks"])
            shares.append((spent["calls"] + spent["sender"]) / spent["at"])
            clocks.append(plain["at"] / spent["at"])
            added.append(b["stage"] - a["stage"])
        note = f"{len(b['marks'])} steps; by the clock {', '.join(f'{ratio:.3f}' for ratio in clocks)}"
        report(f"tracking_step_loop_{name}", 1 - statistics.median(shares), 0.98, note)
        note = f"adds {statistics.median(added):.1f} s to {a['stage']:.1f} s; the ratio is {PATIENCE:.0f} s to that"
        report(f"tracking_whole_stage_{name}", PATIENCE / max(statistics.median(added), 0.01), 1.0, note)


def _spent(marks: list[dict[str, float]]) -> dict[str, float]:
    """Seconds in the last three quarters; the sender has imported mlflow by then, which the stage's seconds count."""
    return {name: marks[-1][name] - marks[len(marks) // 4][name] for name in marks[0]}


def _make_projects(root: Path) -> list[Path]:
    """Two equal projects, ready to refine."""
    first, second = root / "without", root / "tracked"
    write_small_set(first / "set", 1000)
    (first / "more").mkdir()
    write_tiny_clip(first / "clip", seed=1)
    sizes = {"shard__samples_per_shard": 500, "refine__batch_size": 64, "refine__epochs": 80}
    write_params(first, runtime__num_threads=1, cache_teacher__chunk_size=64, **sizes)
    for stage in ("base", "shard", "cache_teacher"):
        quiet(stage, first)
    shutil.copyfile(empty_store(), first / "mlflow.db")
    shutil.copytree(first, second)
    return [first, second]


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
                taken = float(last_line(start(project, START, mode, stage, str(time.time()))))
                values += [taken] if number else []
        off, on = (statistics.median(values) for values in seconds.values())
        note = f"{off:.2f} s without, {on:.2f} s with best_effort"
        report(f"tracking_start_{stage}", off / on, 0.9, note)


def measure(report: Report) -> None:
    """Both, in folders that go afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        refinement(report, Path(folder))
        starts(report, Path(folder))
