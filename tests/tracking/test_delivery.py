"""Deliveries: while the stage works, after it was killed, and repeated from wherever they were cut off."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline_lib import tracking
from pipeline_lib.core import config
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.tracking import delivery, sender
from pipeline_lib.tracking.client import Client
from pipeline_lib.tracking.delivery import deliver
from pipeline_lib.tracking.describe import start_op
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.tracking.store import Store
from tests.tracked_project import (
    CLOSED,
    LOOP,
    client_of,
    content,
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


def test_neighbouring_points_are_sent_together_and_in_order():
    ops = [({"op": "metrics", "points": [[i, 0, 0, 0]] * 3}, i) for i in range(400)]
    ops[200:200] = [({"op": "output", "digest": "d"}, 1000)]
    batches = list(delivery.merged(ops))
    assert [op["op"] for op, _ in batches] == ["metrics", "output", "metrics"]
    assert [position for _, position in batches] == [199, 1000, 399]
    assert [p[0] for op, _ in batches for p in op.get("points", [])] == [i for i in range(400) for _ in range(3)]
    sizes = [len(op["points"]) for op, _ in delivery.merged(ops[:200] * 3)]
    assert sizes == [798, 798, 204]


def test_two_runs_of_one_process_may_overlap(tmp_path):
    params = make_project(tmp_path)
    with tracking.stage_run("base", params) as outer:
        do("shard", params)
        outer.log_metrics({"value": 1.0})
    runs = runs_of(client_of(tmp_path), "stage")
    assert {run.data.tags["stage"]: run.info.status for run in runs} == {"base": "FINISHED", "shard": "FINISHED"}


def test_curves_can_be_watched_while_the_stage_works(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "SEND_EVERY", 0.1)
    params = make_project(tmp_path)
    with tracking.stage_run("refine", params) as run:
        run.log_metrics({"loss": 1.0}, step=0)
        client = client_of(tmp_path)
        wait_until(lambda: runs_of(client, "stage")[0].data.metrics)
        assert runs_of(client, "stage")[0].info.status == "RUNNING"


def test_system_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "SAMPLE_EVERY", 0.05)
    monkeypatch.setattr(sender, "SEND_EVERY", 0.1)
    params = make_project(tmp_path)
    assert config.load(params, TrackingSettings).system_metrics
    with tracking.stage_run("refine", params):
        time.sleep(0.8)
    assert "system/cpu_utilization_percentage" in runs_of(client_of(tmp_path), "stage")[0].data.metrics


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


class Crash(BaseException):
    """The delivering process dies: no handler of ours sees it."""


WRITES = ("create_experiment", "create_run", "log_batch", "log_inputs", "log_artifact", "set_experiment_tag")
WRITES += ("update_run", "set_terminated", "delete_tag", "delete_run")


def crash_after(monkeypatch, number: int | None) -> list[str]:
    """Let the delivery die before write number `number` (counted from 0); the list grows with the writes that began."""
    from mlflow import MlflowClient

    begun: list[str] = []

    def guarded(name: str):
        original = getattr(MlflowClient, name)

        def write(self, *arguments, **named):
            if len(begun) == number:
                raise Crash
            begun.append(name)
            return original(self, *arguments, **named)

        return write

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, guarded(name))
    return begun


def send_all(root: Path) -> None:
    store = Store(Client(root, "clip-refine"))
    for spool in Spool.all(root):
        assert deliver(spool, store)


@pytest.mark.slow
def test_a_delivery_cut_off_before_any_of_its_writes_is_repeated_to_the_same_store(tmp_path, monkeypatch):
    spooled = make_project(tmp_path / "spooled", mode="best_effort")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    with tracking.stage_run("refine", spooled, upstream={"base": "d-base"}) as run:
        for step in range(5):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        log_note(run)
        run.dataset("refine", "ab" * 32, "refine")
        run.headline({"refine/final_loss": 0.5, "verdict": "none"})
        run.output("d-refine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def delivered(number: int | None) -> tuple[dict, int]:
        root = tmp_path / f"cut at {number}"
        shutil.copytree(tmp_path / "spooled", root)
        with monkeypatch.context() as patch:
            begun = crash_after(patch, number)
            with suppress(Crash):
                send_all(root)
        send_all(root)
        assert doubled_points(root) == []
        assert [len(runs_of(client_of(root), kind)) for kind in ("pipeline", "stage")] == [1, 1]
        return content(root), len(begun)

    whole, writes = delivered(None)
    assert writes > 15
    for number in range(writes):
        assert delivered(number)[0] == whole, f"cut off before write {number}"


def test_what_a_request_that_seemed_lost_made_after_all_is_removed(tmp_path, monkeypatch):
    # The delivery was killed while its requests were on their way: they arrive when the next delivery is under way.
    params = make_project(tmp_path, mode="best_effort")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    do("base", params)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store = Store(Client(tmp_path, "clip-refine"))
    (spool,) = Spool.all(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "find", lambda self, *_, **__: [])  # it does not see what is on its way
        for _ in range(2):
            store.apply(spool.first(), spool, None)
    assert [len(runs_of(store.client.mlflow, kind)) for kind in ("pipeline", "stage")] == [2, 2]
    lineage.sync(params)
    assert [len(runs_of(store.client.mlflow, kind)) for kind in ("pipeline", "stage")] == [1, 1]


def test_the_next_stage_sends_what_an_earlier_one_had_to_leave(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    do("base", params)
    assert len(Spool.all(tmp_path)) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with tracking.stage_run("shard", params):
        wait_until(lambda: len(Spool.all(tmp_path)) == 1)
    assert Spool.all(tmp_path) == []
    [row] = runs_of(client_of(tmp_path), "pipeline")
    assert {row.data.tags[f"stage.{stage}"] for stage in ("base", "shard")} == {"executed"}
    assert {run.info.status for run in runs_of(client_of(tmp_path), "stage")} == {"FINISHED"}
