"""Tracking against real MLflow stores: what a row and a run hold, how they end, what a kill or a lost store leaves."""

import errno
import fcntl
import itertools
import json
import logging
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import chdir, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline_lib import tracking
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import Stopped
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.results.folders import Variant
from pipeline_lib.tracking import delivery, sender, views
from pipeline_lib.tracking.client import Client
from pipeline_lib.tracking.describe import configuration, flatten, git_tags, resolved, start_op
from pipeline_lib.tracking.place import project_root, store_uri, workspace
from pipeline_lib.tracking.run import status_of
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.tracking.text import public
from tests import example_results
from tests.tracked_project import (
    CLOSED,
    LOOP,
    change,
    clean_environment,
    client_of,
    curve,
    do,
    doubled_points,
    kill,
    log_note,
    make_project,
    python,
    runs_of,
    wait_until,
)

__all__ = ["clean_environment"]  # a fixture


# Rows and runs


def test_a_pipeline_is_one_row_with_a_run_for_each_stage(tmp_path):
    params = make_project(tmp_path)
    do("base", params, "d-base")
    do("evaluate@base", params, "d-eval", {"base": "d-base"}, set__recall=0.25, verdict="Better.")
    client = client_of(tmp_path)
    (row,), (base, evaluate) = runs_of(client, "pipeline"), runs_of(client, "stage")
    assert [r.info.status for r in (row, base, evaluate)] == ["FINISHED"] * 3
    name = row.info.run_name
    assert name.startswith("clip_refine-seed0-")
    assert [r.info.run_name for r in (base, evaluate)] == [f"base {name}", f"evaluate-base {name}"]
    assert base.data.tags["mlflow.parentRunId"] == evaluate.data.tags["mlflow.parentRunId"] == row.info.run_id
    for run in (row, base, evaluate):
        assert run.data.params["refine.learning_rate"] == "5e-05"
        assert run.data.params["recipes.clip_refine.prior.kind"] == "normal"
        assert "recipes.hycd.alpha" not in run.data.params  # not the chosen recipe
    assert row.data.tags["stage.base"] == row.data.tags["stage.evaluate-base"] == "executed"
    assert row.data.tags["stage.base.run_id"] == evaluate.data.tags["upstream.base.run_id"] == base.info.run_id
    assert evaluate.data.tags["upstream.base.digest"] == base.data.tags["out.digest"] == "d-base"
    assert row.data.metrics == {"set/recall": 0.25}  # and nothing else: it is a line of a table
    assert evaluate.data.metrics["set/recall"] == 0.25
    assert base.data.metrics["base/value"] == 1.0
    assert base.data.metrics["time/base_seconds"] >= 0
    assert row.data.tags["verdict"] == evaluate.data.tags["verdict"] == "Better."
    assert "clip_refine" in row.data.tags["mlflow.note.content"]
    assert base.data.tags["mlflow.note.content"].startswith("Materialise the pre-trained model")


def test_a_second_configuration_marks_what_it_reused_and_by_whom_it_was_made(tmp_path):
    params = make_project(tmp_path)
    do("base", params, "b")
    do("shard", params, "s", {"base": "b"})
    do("cache_teacher", params, "c", {"base": "b", "shard": "s"})
    do("refine", params, "r1", {"base": "b", "shard": "s", "cache_teacher": "c"}, refine__loss=2.0)
    do("evaluate@base", params, "e0", {"base": "b", "shard": "s"}, base__recall=0.2)
    do("evaluate@refined", params, "e1", {"refine": "r1", "shard": "s"}, refined__recall=0.3)
    do("report", params, "p1", {"evaluate@base": "e0", "evaluate@refined": "e1"}, verdict="Worse.")
    change(params, "recipe: clip_refine", "recipe: hycd")
    do("refine", params, "r2", {"base": "b", "shard": "s", "cache_teacher": "c"}, refine__loss=1.0)
    do("evaluate@refined", params, "e2", {"refine": "r2", "shard": "s"}, refined__recall=0.4)
    do("report", params, "p2", {"evaluate@base": "e0", "evaluate@refined": "e2"})
    first, second = runs_of(client_of(tmp_path), "pipeline")
    states = {k: v for k, v in second.data.tags.items() if k.startswith("stage.") and k.count(".") == 1}
    assert states == {
        "stage.base": "reused",
        "stage.shard": "reused",
        "stage.cache_teacher": "reused",
        "stage.refine": "executed",
        "stage.evaluate-base": "reused",
        "stage.evaluate-refined": "executed",
        "stage.report": "executed",
    }
    for stage in ("base", "shard", "cache_teacher", "evaluate-base"):
        assert second.data.tags[f"stage.{stage}.run_id"] == first.data.tags[f"stage.{stage}.run_id"]
    assert second.data.tags["stage.refine.run_id"] != first.data.tags["stage.refine.run_id"]
    assert (first.data.metrics["refined/recall"], second.data.metrics["refined/recall"]) == (0.3, 0.4)
    assert second.data.metrics["base/recall"] == 0.2  # promoted from the reused run, so that the rows compare
    assert "time/base_seconds" not in second.data.metrics  # it was not spent again
    assert len(runs_of(client_of(tmp_path), "stage")) == 10


def test_reuse_is_followed_through_the_runs_that_made_the_output(tmp_path):
    # Only the report runs: it names its direct inputs, and the runs that made them name theirs.
    params = make_project(tmp_path)
    do("base", params, "b", base__recall=0.1, verdict="Better.")
    do("refine", params, "r", {"base": "b"})
    do("evaluate@refined", params, "e", {"refine": "r"})
    change(params, "num_examples: 8", "num_examples: 9")
    do("report", params, "p", {"evaluate@refined": "e"})
    row = runs_of(client_of(tmp_path), "pipeline")[1]
    assert [row.data.tags[f"stage.{s}"] for s in ("base", "refine", "evaluate-refined")] == ["reused"] * 3
    assert row.data.metrics["base/recall"] == 0.1
    assert row.data.tags["verdict"] == "Better."


def test_an_interrupted_pipeline_goes_on_in_its_row_and_a_forced_one_opens_another(tmp_path):
    params = make_project(tmp_path)
    do("base", params)
    with pytest.raises(ZeroDivisionError), tracking.stage_run("shard", params):
        _ = 1 / 0
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert row.info.status == "FAILED"
    assert row.data.tags["error"] == "shard failed: ZeroDivisionError: division by zero"
    do("shard", params)
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert "error" not in row.data.tags
    assert (row.info.status, row.data.tags["stage.base"], row.data.tags["stage.shard"]) == (
        "FINISHED",
        "executed",
        "executed",
    )
    do("base", params)  # dvc repro -f
    do("shard", params)
    assert len(runs_of(client_of(tmp_path), "pipeline")) == 2


def test_two_dvc_experiments_of_one_configuration_are_two_rows_with_their_names(tmp_path, monkeypatch):
    params = make_project(tmp_path)
    for name in ("puffy-daks", "hycd-seed1"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        do("base", params)
    rows = runs_of(client_of(tmp_path), "pipeline")
    assert [(r.info.run_name, r.data.tags["dvc.exp_name"]) for r in rows] == [
        (n, n) for n in ("puffy-daks", "hycd-seed1")
    ]
    assert rows[0].data.tags["pipeline.config"] == rows[1].data.tags["pipeline.config"]


def test_runtime_and_tracking_do_not_make_another_configuration(tmp_path):
    params = make_project(tmp_path)
    do("base", params)
    change(params, "num_workers: 2", "num_workers: 0")
    do("shard", params)
    assert len(runs_of(client_of(tmp_path), "pipeline")) == 1


def test_dvc_names_the_item_of_a_matrix(tmp_path, monkeypatch):
    params = make_project(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "evaluate@refined")
    do("evaluate", params)
    assert runs_of(client_of(tmp_path), "stage")[0].data.tags["stage"] == "evaluate-refined"


def test_artifacts_and_data_sets_arrive(tmp_path):
    params = make_project(tmp_path)
    source = tmp_path / "table.csv"
    source.write_text("a,b\n1,2\n")
    with tracking.stage_run("report", params) as run:
        run.log_artifact(source, "tables")
        source.unlink()  # a work folder is renamed or removed as soon as the stage is through
        log_note(run)
        run.dataset("data/shards/refine", "ab" * 32, "refine")
    (run,) = runs_of(client_of(tmp_path), "stage")
    place = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    assert run.info.artifact_uri == place.as_uri()
    assert (place / "tables" / "table.csv").read_text() == "a,b\n1,2\n"
    assert (place / "note.md").read_text() == "a note"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("data/shards/refine", "ab" * 18, "refine")
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert [one.dataset.name for one in row.inputs.dataset_inputs] == ["data/shards/refine"]
    assert not (tmp_path / ".tracking-spool").exists()


def test_the_table_of_rows_comes_with_columns_that_grow_with_what_is_measured(tmp_path):
    """MLflow's page shows no number until one picks it, or a saved view does."""
    params = make_project(tmp_path)
    do("report", params, set__recall=0.1, verdict="Better.")
    change(params, "recipe: clip_refine", "recipe: hycd")
    do("report", params, other__top1=0.1, set__recall=0.2)
    client = client_of(tmp_path)
    tags = client.get_experiment_by_name("clip-refine").tags
    view = json.loads(tags["mlflow.sharedViewState.configurations"])
    state = json.loads(view["state"])
    assert (view["name"], state["searchFilter"]) == ("Configurations", "tags.kind = 'pipeline'")
    columns = state["selectedColumns"]
    assert columns[-2:] == ["metrics.`set/recall`", "metrics.`other/top1`"]
    assert len(columns) == len(set(columns))
    rows = runs_of(client, "pipeline")
    for name in (column.split("`")[1] for column in columns):  # each is one that some row fills
        assert any(name in {**row.data.tags, **row.data.params, **row.data.metrics} for row in rows)
    assert views.configurations(tags, ["set/recall"], 0) == {}
    assert views.configurations(tags, [f"set/{'x' * 100}{i}" for i in range(50)], 0) == {}  # MLflow takes 5000 letters


def test_a_row_of_the_table_is_the_verdict_the_headlines_and_the_gap(tmp_path, monkeypatch):
    """Each headline with its change, recomputed here from the items, and a p-value; four digits, no more numbers."""
    example_results.make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    inputs = read_inputs(tmp_path / "params.yaml")
    found = report.summary(inputs)
    hits = [e.items("eval")["image_to_text_hit_at_1"].mean() for e in (inputs.base, inputs.refined)]
    assert found["eval/image_to_text_recall_at_1"] == pytest.approx(hits[1], rel=1e-3)
    assert found["eval/image_to_text_recall_at_1_difference"] == pytest.approx(hits[1] - hits[0], rel=1e-3, abs=1e-9)
    assert 0 < found["eval/image_to_text_recall_at_1_adjusted_p"] <= 1
    gap = [Variant(e).block("eval", "gap")["centroid_distance"] for e in (inputs.base, inputs.refined)]
    assert found["eval/centroid_distance_difference"] == pytest.approx(gap[1] - gap[0], rel=1e-3)
    assert found["verdict"] == report.sentence(inputs)
    headlines = [row for row in inputs.comparison if row.adjusted_p is not None]
    assert len(found) == 3 * len(headlines) + 3
    numbers = [value for value in found.values() if not isinstance(value, str)]
    assert numbers == [float(f"{value:.4g}") for value in numbers]  # four digits, as a table can show them


# Points


def test_two_runs_of_one_process_may_overlap(tmp_path):
    params = make_project(tmp_path)
    with tracking.stage_run("base", params) as outer:
        do("shard", params)
        outer.log_metrics({"value": 1.0})
    runs = runs_of(client_of(tmp_path), "stage")
    assert {run.data.tags["stage"]: run.info.status for run in runs} == {"base": "FINISHED", "shard": "FINISHED"}


def test_neighbouring_points_are_sent_together_and_in_order():
    ops = [({"op": "metrics", "points": [[i, 0, 0, 0]] * 3}, i) for i in range(400)]
    ops[200:200] = [({"op": "output", "digest": "d"}, 1000)]
    batches = list(delivery.merged(ops))
    assert [op["op"] for op, _ in batches] == ["metrics", "output", "metrics"]
    assert [position for _, position in batches] == [199, 1000, 399]
    assert [p[0] for op, _ in batches for p in op.get("points", [])] == [i for i in range(400) for _ in range(3)]
    sizes = [len(op["points"]) for op, _ in delivery.merged(ops[:200] * 3)]
    assert sizes == [798, 798, 204]


def test_every_point_arrives_once_with_its_value(tmp_path):
    params = make_project(tmp_path)
    expected = {step: 1.0 / (step + 1) for step in range(1500)}  # 3,000 points: more than one request may hold
    with tracking.stage_run("refine", params) as run:
        for step, value in expected.items():
            run.log_metrics({"loss": value, "rate": 2.0 * step}, step=step)
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert curve(client_of(tmp_path), run.info.run_id, "loss") == sorted(expected.items())
    assert curve(client_of(tmp_path), run.info.run_id, "rate")[-1] == (1499, 2998.0)
    assert doubled_points(tmp_path) == []


def test_curves_can_be_watched_while_the_stage_works(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "SEND_EVERY", 0.1)
    params = make_project(tmp_path)
    with tracking.stage_run("refine", params) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        client = client_of(tmp_path)
        wait_until(lambda: runs_of(client, "stage")[0].data.metrics)
        assert runs_of(client, "stage")[0].info.status == "RUNNING"


def test_a_row_ends_as_the_worst_of_its_stages_until_that_runs_again(tmp_path):
    # `dvc repro --keep-going` runs refine although evaluate@base has failed.
    params = make_project(tmp_path)
    with pytest.raises(RuntimeError), tracking.stage_run("evaluate@base", params):
        raise RuntimeError("no")
    do("refine", params)
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert (row.info.status, row.data.tags["error"]) == ("FAILED", "evaluate-base failed: RuntimeError: no")
    do("evaluate@base", params)
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert row.info.status == "FINISHED"
    assert "error" not in row.data.tags


def test_not_a_number_and_odd_names_do_not_stop_anything(tmp_path):
    params = make_project(tmp_path)
    with tracking.stage_run("refine", params) as run:
        run.log_metrics({"loss": math.nan, "norm": math.inf, "recall@1": 0.5}, step=3)
    metrics = runs_of(client_of(tmp_path), "stage")[0].data.metrics
    assert math.isnan(metrics["loss"])
    assert metrics["norm"] > 1e300
    assert metrics["recall-1"] == 0.5


def test_system_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "SAMPLE_EVERY", 0.05)
    monkeypatch.setattr(sender, "SEND_EVERY", 0.1)
    params = make_project(tmp_path)
    assert config.load(params, TrackingSettings).system_metrics
    with tracking.stage_run("refine", params):
        time.sleep(0.8)
    assert "system/cpu_utilization_percentage" in runs_of(client_of(tmp_path), "stage")[0].data.metrics


# How a run ends


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [(ValueError("bad"), "FAILED", "failed"), (SystemExit(128 + signal.SIGTERM), "KILLED", "killed")],
)
def test_a_run_ends_as_its_stage_does_and_the_error_goes_on(tmp_path, error, status, state):
    params = make_project(tmp_path)
    with pytest.raises(type(error)), tracking.stage_run("shard", params):
        raise error
    (row,), (run,) = (runs_of(client_of(tmp_path), kind) for kind in ("pipeline", "stage"))
    assert (row.info.status, run.info.status, row.data.tags["stage.shard"]) == (status, status, state)
    assert run.data.tags["error"].startswith(type(error).__name__)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Stopped(), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("text"), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(), "FINISHED"),
        (MemoryError(), "FAILED"),
    ],
)
def test_every_way_to_end_has_its_status(error, status):
    assert status_of(error) == status


def test_killed_and_resumed_is_one_run_without_a_gap_or_a_doubled_point(tmp_path):
    make_project(tmp_path)
    victim = python(LOOP, tmp_path)
    assert victim.stdout.readline() == "there\n"
    kill(victim)
    again = python(LOOP, tmp_path)
    assert again.wait(60) == 0, again.stderr.read()
    client = client_of(tmp_path)
    (run,), (row,) = runs_of(client, "stage"), runs_of(client, "pipeline")
    assert (run.info.status, run.data.tags["resumed"], row.data.tags["stage.refine"]) == ("FINISHED", "1", "executed")
    assert row.data.tags["stage.refine.run_id"] == run.info.run_id
    assert curve(client, run.info.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(30)]
    assert doubled_points(tmp_path) == []
    assert not (tmp_path / ".tracking-spool").exists()


def test_a_killed_stage_is_seen_as_killed_at_once_and_loses_no_point(tmp_path):
    make_project(tmp_path)
    victim = python(LOOP, tmp_path)
    assert victim.stdout.readline() == "there\n"
    client = client_of(tmp_path)
    assert runs_of(client, "stage")[0].info.status == "RUNNING"
    kill(victim)
    wait_until(lambda: not (tmp_path / ".tracking-spool").exists())
    (run,), (row,) = runs_of(client, "stage"), runs_of(client, "pipeline")
    assert (run.info.status, row.info.status, row.data.tags["stage.refine"]) == ("KILLED", "KILLED", "killed")
    assert [step for step, _ in curve(client, run.info.run_id, "loss")] == list(range(16))


def test_after_a_power_cut_the_next_stage_closes_what_says_running_and_is_not(tmp_path):
    params = make_project(tmp_path)
    client = client_of(tmp_path)
    victim = python(LOOP, tmp_path)
    assert victim.stdout.readline() == "there\n"
    kill(victim, with_sender=True)
    assert [run.info.status for run in runs_of(client, "stage")] == ["RUNNING"]
    change(params, "num_examples: 8", "num_examples: 9")
    with tracking.stage_run("base", params):
        do("shard", params)
        statuses = {run.data.tags["stage"]: run.info.status for run in runs_of(client, "stage")}
        assert statuses == {"refine": "KILLED", "base": "RUNNING", "shard": "FINISHED"}
    first, second = runs_of(client, "pipeline")
    assert (first.info.status, first.data.tags["stage.refine"]) == ("KILLED", "killed")
    assert second.info.status == "FINISHED"


def test_the_time_of_a_resumed_run_is_that_of_all_its_attempts(tmp_path):
    params = make_project(tmp_path)
    first = ""
    for attempt in range(3):
        with suppress(Stopped), tracking.stage_run("refine", params) as run:
            run.resume(first)
            first = run.run_id
            time.sleep(0.5)
            if attempt < 2:
                raise Stopped
    (run,) = runs_of(client_of(tmp_path), "stage")
    seconds = curve(client_of(tmp_path), run.info.run_id, "time/refine_seconds")
    assert [step for step, _ in seconds] == [0, 1, 2]
    assert all(later - earlier >= 0.5 for (_, earlier), (_, later) in itertools.pairwise(seconds))
    assert doubled_points(tmp_path) == []


def test_a_row_deleted_while_a_stage_runs_takes_nothing_with_it(tmp_path):
    params = make_project(tmp_path)
    do("base", params, "b")
    client = client_of(tmp_path)
    with tracking.stage_run("refine", params, upstream={"base": "b"}) as run:
        client.delete_run(runs_of(client, "pipeline")[0].info.run_id)
        run.log_metrics({"loss": 1.0}, step=0)
        run.headline({"refined/recall": 0.5})
        run.output("r")
    refined = runs_of(client, "stage")[1]
    assert (refined.info.status, refined.data.tags["out.digest"]) == ("FINISHED", "r")
    assert refined.data.metrics["refined/recall"] == 0.5
    do("evaluate@refined", params, "e", {"refine": "r"})
    assert runs_of(client, "stage")[2].data.tags["upstream.refine.run_id"] == refined.info.run_id


def test_after_a_power_cut_a_deleted_row_stops_nobody(tmp_path):
    params = make_project(tmp_path)
    victim = python(LOOP, tmp_path)
    assert victim.stdout.readline() == "there\n"
    kill(victim, with_sender=True)
    client = client_of(tmp_path)
    client.delete_run(runs_of(client, "pipeline")[0].info.run_id)
    do("base", params)
    assert [run.info.status for run in runs_of(client, "stage")] == ["KILLED", "FINISHED"]


def test_a_stage_killed_as_soon_as_it_began_is_said_to_be_killed(tmp_path):
    make_project(tmp_path, mode="best_effort")
    code = """
        import os, signal
        from pathlib import Path
        from pipeline_lib import tracking

        with tracking.stage_run("refine", Path("params.yaml")) as run:
            run.log_metrics({"loss": 1.0}, step=0)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, tmp_path).wait(60) == -signal.SIGKILL
    wait_until(lambda: not (tmp_path / ".tracking-spool").exists())
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert (run.info.status, curve(client_of(tmp_path), run.info.run_id, "loss")) == ("KILLED", [(0, 1.0)])


def test_a_sender_that_reads_of_the_drop_before_it_is_told_of_the_resumed_run_goes_on(tmp_path):
    params = make_project(tmp_path)
    spools = []
    for minute in range(2):  # the run to go on with, and the one that was begun for nothing
        start = start_op("refine", params, {})
        spools.append(Spool.of(tmp_path, "refine", start["uid"]))
        assert spools[-1].open()
        spools[-1].append(start | {"time": start["time"] + 60_000 * minute})
    old, new = spools
    pace = {"every": 1.0, "retry": 1.0, "sample": 1.0, "system_metrics": False, "strict": True, "environment": {}}
    told = {"process": os.getpid(), "spool": str(new.path), "root": str(tmp_path), "experiment": "clip-refine", **pace}
    job = delivery.Job(told)
    job.attempt(at_once=True)
    new.append({"op": "dropped"})
    job.attempt(at_once=True)
    assert job.state() == {"error": None, "done": True}
    job.drop()
    job = delivery.Job(told | {"spool": str(old.path)})
    job.attempt(at_once=True)
    assert job.state() == {"error": None, "done": True}
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert run.data.tags["run.uid"] == old.first()["uid"]
    assert not new.path.exists()


def test_what_was_said_before_resuming_is_said_about_the_resumed_run(tmp_path):
    params = make_project(tmp_path)
    with pytest.raises(ZeroDivisionError), tracking.stage_run("refine", params) as run:
        _ = 1 / 0
    first = run.run_id
    with tracking.stage_run("refine", params) as run:
        run.dataset("data/shards/refine", "ab", "refine")
        log_note(run)
        run.resume(first)
        assert run.run_id == first
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert run.info.status == "FINISHED"
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["data/shards/refine"]
    assert (tmp_path / "mlartifacts" / run.info.run_id / "artifacts" / "note.md").read_text() == "a note"


# Modes


def test_disabled_imports_no_mlflow_and_leaves_nothing(tmp_path):
    make_project(tmp_path, mode="disabled", store=False)
    code = """
        import sys
        from pathlib import Path
        from pipeline_lib import tracking

        with tracking.stage_run("refine", Path("params.yaml"), upstream={"base": "d"}) as run:
            run.log_metrics({"loss": 1.0}, step=0)
            run.headline({"loss": 1.0})
            run.log_artifact(Path("no such file"))
            run.dataset("a", "b", "c")
            run.output("d")
            run.flush()
            run.resume(run.run_id)
            print(run.info)
        assert not [name for name in sys.modules if name.split(".")[0] in ("mlflow", "torch", "pandas")]
    """
    out, err = python(code, tmp_path).communicate(timeout=60)
    assert (out, err) == ("tracking disabled\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_of_several_processes_only_the_first_tracks(tmp_path, monkeypatch, name):
    params = make_project(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv(name, "1")
    do("refine", params)
    assert runs_of(client_of(tmp_path), "stage") == []
    monkeypatch.setenv(name, "0")
    do("refine", params)
    assert len(runs_of(client_of(tmp_path), "stage")) == 1


def test_required_stops_at_once_where_no_server_is(tmp_path, monkeypatch):
    params = make_project(tmp_path, store=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    entered = False
    with (
        pytest.raises(
            UserError, match=r"required.*127\.0\.0\.1:9 failed \(Connection refused\).*best_effort"
        ) as caught,
        tracking.stage_run("refine", params),
    ):
        entered = True
    assert not entered
    assert "hunter2" not in str(caught.value)


def test_best_effort_with_no_server_says_so_once_and_spools(tmp_path, monkeypatch, caplog):
    params = make_project(tmp_path, mode="best_effort", store=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    monkeypatch.setattr(sender, "RETRY_EVERY", 0.2)
    began = time.monotonic()
    with caplog.at_level(logging.INFO, "pipeline_lib"), tracking.stage_run("refine", params) as run:
        for step in range(5):
            run.log_metrics({"loss": step}, step=step)
            run.flush()
            time.sleep(0.1)
    assert time.monotonic() - began < 10
    assert run.info.startswith("spooled to .tracking-spool/refine-")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "http://***@127.0.0.1:9: Connection refused" in message
    assert "lineage sync" in message
    (spool,) = (tmp_path / ".tracking-spool").glob("*.jsonl")
    assert "hunter2" not in spool.read_text()


class Refusing(BaseHTTPRequestHandler):
    """What a gateway without its server, or without our credentials, answers."""

    code = 503

    def do_GET(self):
        self.send_error(self.code)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("code", [401, 503])
def test_a_server_that_refuses_is_a_lost_server(tmp_path, monkeypatch, caplog, code):
    params = make_project(tmp_path, mode="best_effort", store=False)
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Refusing,), {"code": code}))
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gateway.server_port}")
    began = time.monotonic()
    do("base", params)
    assert time.monotonic() - began < 10
    gateway.shutdown()
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("pipeline_lib")]
    assert str(code) in message
    assert len(Spool.all(tmp_path)) == 1


@pytest.mark.parametrize("mode", ["best_effort", "required"])
def test_a_store_that_fails_in_the_middle(tmp_path, monkeypatch, caplog, mode):
    # The metrics table is taken away and put back: the store answers, but refuses what it is sent.
    params = make_project(tmp_path, mode=mode)
    monkeypatch.setattr(sender, "SEND_EVERY", 0.05)
    monkeypatch.setattr(sender, "RETRY_EVERY", 0.2)

    client = client_of(tmp_path)

    def rename(old: str, new: str) -> None:
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute(f"alter table {old} rename to {new}")

    def work() -> None:
        with tracking.stage_run("refine", params) as run:
            for step in range(30):
                run.log_metrics({"loss": 0.5 * step}, step=step)
                if step == 10:
                    wait_until(lambda: (runs := runs_of(client, "stage")) and "loss" in runs[0].data.metrics)
                    rename("metrics", "metrics_away")
                if step == 20:
                    wait_until(lambda: run._sender.error)
                if step == 20 and mode == "best_effort":
                    rename("metrics_away", "metrics")

    if mode == "required":
        with pytest.raises(UserError, match=r"no such table: metrics.*`dvc commit refine` keeps it"):
            work()
        rename("metrics_away", "metrics")
        assert ": sent" in lineage.sync(params)
    else:
        work()
    (run,) = runs_of(client, "stage")
    assert run.info.status == "FINISHED"  # the work was done, whatever became of the store
    assert curve(client, run.info.run_id, "loss") == [(step, 0.5 * step) for step in range(30)]
    assert doubled_points(tmp_path) == []
    assert not (tmp_path / ".tracking-spool").exists()
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert ["no such table: metrics" in message for message in messages] == [True] * (mode == "best_effort")


def test_required_raises_where_the_loop_asks_and_the_run_says_why(tmp_path, monkeypatch):
    params = make_project(tmp_path)

    def work() -> None:
        with tracking.stage_run("refine", params) as run:
            run.check()  # all is well
            run.settle()
            with sqlite3.connect(tmp_path / "mlflow.db") as database:
                database.execute("alter table metrics rename to away")
            run.log_metrics({"loss": 1.0}, step=0)
            with pytest.raises(UserError):
                run.settle()
            run.log_metrics({"loss": 0.5}, step=1)  # what is logged is never refused: it stands in the spool
            run.flush()
            run.check()

    with pytest.raises(UserError, match="no such table: metrics"):
        work()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("alter table away rename to metrics")
    lineage.sync(params)
    (failed,) = runs_of(client_of(tmp_path), "stage")
    assert failed.info.status == "FAILED"
    assert "tracking.mode: `required`" in failed.data.tags["error"]
    assert curve(client_of(tmp_path), failed.info.run_id, "loss") == [(0, 1.0), (1, 0.5)]


def test_a_full_disk_is_said_once_and_leaves_no_torn_line(tmp_path, caplog, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    with tracking.stage_run("refine", params) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        file = run._spool._file
        monkeypatch.setattr(run._spool, "_file", Full(file))
        for step in range(1, 5):
            run.log_metrics({"loss": 1.0}, step=step)
        monkeypatch.setattr(run._spool, "_file", file)
        run.log_metrics({"loss": 1.0}, step=5)
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "log_metrics failed (OSError: [Errno 28] No space left on device" in message
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert [step for step, _ in curve(client_of(tmp_path), run.info.run_id, "loss")] == [0, 5]


class Full:
    """A file on a disk that takes four more bytes of each line."""

    def __init__(self, file) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data[:4])

    def fileno(self) -> int:
        return self._file.fileno()


def test_a_disk_that_is_full_for_the_last_line_alone_leaves_a_finished_run(tmp_path, caplog, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    append = Spool.append

    def full(self, op):
        if op["op"] == "end":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, op)

    monkeypatch.setattr(Spool, "append", full)
    do("refine", params, "r")
    (run,), (row,) = (runs_of(client_of(tmp_path), kind) for kind in ("stage", "pipeline"))
    assert (run.info.status, row.info.status, row.data.tags["stage.refine"]) == ("FINISHED", "FINISHED", "executed")
    assert "No space left" in caplog.text


def test_spools_are_made_while_another_process_removes_their_empty_folder(tmp_path):
    """Two processes begin and end runs as fast as they can; the last one to end removes the folder each time."""
    code = """
        import os
        from pathlib import Path
        from pipeline_lib.tracking.spool import Spool

        for number in range(2000):
            spool = Spool.of(Path("."), "refine", f"{os.environ['NAME']}{number:011d}")
            assert spool.open()
            spool.delete()
    """
    both = [python(code, tmp_path, NAME=name) for name in "ab"]
    assert [process.wait(120) for process in both] == [0, 0], [process.stderr.read() for process in both]


@pytest.mark.parametrize("mode", ["best_effort", "required"])
def test_a_file_system_without_locks_is_named_with_the_remedy(tmp_path, monkeypatch, caplog, mode):
    params = make_project(tmp_path, mode=mode, store=False)

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    if mode == "required":
        with pytest.raises(UserError, match=r"cannot be locked .* set tracking\.mode to disabled"):
            do("base", params)
    else:
        do("base", params)
        assert caplog.text.count("cannot be locked") == 1


def test_a_store_of_another_version_is_one_sentence(tmp_path):
    params = make_project(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    with pytest.raises(UserError, match="out-of-date database schema"):
        do("base", params)


def test_an_experiment_in_the_bin_is_named_with_the_remedy(tmp_path):
    params = make_project(tmp_path)
    do("base", params)
    client = client_of(tmp_path)
    client.delete_experiment(client.get_experiment_by_name("clip-refine").experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment: `clip-refine` was deleted"):
        do("base", params)


@pytest.mark.parametrize("mode", ["best_effort", "required"])
def test_a_value_that_mlflow_refuses_is_left_out_or_raised(tmp_path, caplog, mode):
    params = make_project(tmp_path, mode=mode)

    def work() -> None:
        with tracking.stage_run("refine", params) as run:
            run.dataset("x" * 501, "ab", "refine")  # MLflow takes 500 characters
            run.log_metrics({"loss": 1.0}, step=0)

    if mode == "required":
        with pytest.raises(UserError, match="required"):
            work()
        return
    work()
    assert runs_of(client_of(tmp_path), "stage")[0].data.metrics["loss"] == 1.0
    assert any("MLflow refuses" in record.getMessage() for record in caplog.records)


def test_best_effort_swallows_its_own_mistakes(tmp_path, caplog):
    params = make_project(tmp_path, mode="best_effort")
    with tracking.stage_run("refine", params) as run:
        run.log_artifact(tmp_path / "no such file")
        run.log_metrics({"loss": 1.0}, step=0)
    assert any("the work goes on" in record.getMessage() for record in caplog.records)
    assert runs_of(client_of(tmp_path), "stage")[0].info.status == "FINISHED"


# Where things go, and what is said


def test_the_store_is_in_the_project_root(tmp_path, monkeypatch):
    root = tmp_path / "main repository"  # with a blank
    temporary = root / ".dvc" / "tmp" / "exps" / "tmp1"
    make_project(root)
    params = make_project(temporary, store=False)
    monkeypatch.setenv("DVC_ROOT", str(root))  # as DVC does for its queue
    with tracking.stage_run("base", params) as run:
        log_note(run)
    assert sorted(path.name for path in temporary.iterdir()) == ["params.yaml"]
    client = client_of(root)
    experiment = client.get_experiment_by_name("clip-refine")
    assert experiment.artifact_location == (root / "mlartifacts").as_uri()
    assert "tmp1" not in fresh_store_made_in(temporary, tmp_path / "other").get_experiment("0").artifact_location
    (run,) = runs_of(client, "stage")
    assert (root / "mlartifacts" / run.info.run_id / "artifacts" / "note.md").is_file()


def fresh_store_made_in(folder: Path, root: Path):
    """The client of a store that is made while `folder` is the current one."""
    root.mkdir()
    with chdir(folder):
        Client(root, "clip-refine")
    return client_of(root)


def test_the_root_without_dvc_running_the_stage(tmp_path):
    project = tmp_path / "project"
    make_project(project / "sub", store=False)
    assert project_root(project / "sub" / "params.yaml") == project / "sub"
    (project / ".git").mkdir()
    assert project_root(project / "sub" / "params.yaml") == project
    (project / "sub" / ".dvc").mkdir()
    assert project_root(project / "sub" / "params.yaml") == project / "sub"


def test_a_relative_store_is_anchored_and_clones_that_share_a_store_keep_their_rows_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///sub/mlflow.db")  # in a temporary folder of DVC it would vanish
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path}/sub/mlflow.db"
    shared = make_project(tmp_path / "shared").parent / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    for clone in ("one", "two"):
        do("base", make_project(tmp_path / clone, store=False))
    do("shard", tmp_path / "one" / "params.yaml")
    rows = runs_of(client_of(tmp_path / "shared"), "pipeline")
    assert [("stage.shard" in row.data.tags) for row in rows] == [True, False]
    experiment = client_of(tmp_path / "shared").get_experiment_by_name("clip-refine")
    assert experiment.artifact_location == (tmp_path / "shared" / "mlartifacts").as_uri()  # outlives either clone


def test_a_workspace_is_known_by_its_folder_whatever_the_host_calls_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    one, two = (tmp_path / name for name in ("one", "two"))
    one.mkdir()
    first = workspace(one)
    monkeypatch.setattr("platform.node", lambda: "another container")
    assert workspace(one) == first
    shutil.copytree(one, two, symlinks=True)
    assert workspace(two) != first


def test_only_code_that_a_stage_imports_decides_the_configuration(tmp_path):
    params = make_project(tmp_path / "project", store=False)
    graph = params.with_name("dvc.yaml")
    graph.write_text("stages:\n  a:\n    deps:\n      - stages/a.py\n")
    code = tmp_path / "code"
    (code / "stages").mkdir(parents=True)
    for name in ("a", "b"):
        (code / "stages" / f"{name}.py").write_text("1")
    before = configuration(params, code)
    (code / "stages" / "b.py").write_text("2")
    assert configuration(params, code) == before
    (code / "stages" / "a.py").write_text("2")
    assert configuration(params, code) != before


def test_names_with_an_apostrophe_are_found(tmp_path, monkeypatch):
    params = make_project(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "it's")
    do("base", params)
    do("shard", params)
    assert [row.info.run_name for row in runs_of(client_of(tmp_path), "pipeline")] == ["it's"]


def test_parameters_hold_no_secret_and_no_absolute_path():
    flat = flatten({"data": {"root": "/data/coco", "list": [1, "a"]}, "base": {"path": None}, "x@y": "~/z"})
    assert flat == {"data.root": ".../coco", "data.list": '[1, "a"]', "base.path": "null", "x-y": ".../z"}
    assert flatten({"a": ["/data/x", "http://a:b@c"]}) == {"a": '[".../x", "http://***@c"]'}
    assert public("https://me:secret@host/a") == "https://***@host/a"
    assert public("https://me:s@c/r?t@host/a") == "https://***@host/a"
    assert (
        public("GET http://host/a?run=1&api_token=abc&x=2 failed") == "GET http://host/a?run=1&api_token=***&x=2 failed"
    )
    assert public("GET http://host/a?pwd=abc&auth=x&page=2") == "GET http://host/a?pwd=***&auth=***&page=2"
    assert public("[Errno 2] No such file: '/data/x.pt'") == "[Errno 2] No such file: '.../x.pt'"
    assert public("data/base and a/b: 3/4 of ../x") == "data/base and a/b: 3/4 of ../x"
    assert flatten({"a": "x" * 7000})["a"] == "x" * 6000
    assert resolved({"refine": {"recipe": "b"}, "recipes": {"a": 1, "b": 2}})["recipes"] == {"b": 2}


def test_git_tags_tell_the_commit_and_what_differs_from_it(tmp_path):
    assert git_tags(tmp_path) == {}

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    assert git_tags(tmp_path) == {}  # no commit yet
    for name in ("code.py", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "dvc.lock").write_text("2")  # a running pipeline writes it
    (tmp_path / "untracked").write_text("2")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": head, "git.dirty": "false"}
    (tmp_path / "new.py").write_text("2")  # a stage may import it
    assert git_tags(tmp_path)["git.changed"] == "new.py"
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("2")
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": head, "git.dirty": "true", "git.changed": "code.py"}


# Slow: several processes, and a real server


RACER = """
    from pathlib import Path
    from pipeline_lib import tracking

    with tracking.stage_run("base", Path("params.yaml")) as run:
        run.log_metrics({"value": 1.0})
        run.log_artifact(Path("params.yaml"))
"""


@pytest.mark.slow
def test_four_processes_may_make_the_store_at_the_same_time(tmp_path):
    # The tracking store migrates itself without a lock: unguarded, several of these fail.
    make_project(tmp_path, store=False)
    racers = [python(RACER, tmp_path, DVC_EXP_NAME=f"exp-{i}") for i in range(4)]
    for racer in racers:
        assert racer.wait(300) == 0, racer.stderr.read()
    client = client_of(tmp_path)
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "clip-refine"]
    assert sorted(r.info.run_name for r in runs_of(client, "pipeline")) == [f"exp-{i}" for i in range(4)]
    assert [r.info.status for r in runs_of(client, "stage")] == ["FINISHED"] * 4
