"""A stage under tracking: how its run ends and resumes, each mode, and a store or disk that fails."""

import errno
import json
import logging
import os
import signal
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from pipeline_lib import tracking
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import Stopped
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.tracking import run as module
from pipeline_lib.tracking import sender, times
from pipeline_lib.tracking.run import status_of
from pipeline_lib.tracking.spool import Spool
from tests.tracked_project import (
    CLOSED,
    LOOP,
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
    assert not (tmp_path / times.FILE).exists()


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
        run.output("abc")
    [line] = map(json.loads, (tmp_path / times.FILE).read_text().splitlines())
    assert (line["stage"], line["output"], line["resumed"]) == ("refine", "abc", True)
    assert line["machine"].endswith(f"{torch.get_num_threads()} threads")
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert run.info.status == "FINISHED"
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["data/shards/refine"]
    assert (tmp_path / "mlartifacts" / run.info.run_id / "artifacts" / "note.md").read_text() == "a note"


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


def test_best_effort_swallows_its_own_mistakes(tmp_path, caplog):
    params = make_project(tmp_path, mode="best_effort")
    with tracking.stage_run("refine", params) as run:
        run.log_artifact(tmp_path / "no such file")
        run.log_metrics({"loss": 1.0}, step=0)
    assert any("the work goes on" in record.getMessage() for record in caplog.records)
    assert runs_of(client_of(tmp_path), "stage")[0].info.status == "FINISHED"


def refuse(stage, params, resumed="", points=()):
    """A stage that says what its user should mend."""
    with tracking.stage_run(stage, params) as run:
        if resumed:
            run.resume(resumed)
        for step, loss in enumerate(points):
            run.log_metrics({"refine/loss": loss}, step=step)
        raise UserError("params.yaml: a typo")


def test_a_start_that_is_refused_leaves_no_red_row(tmp_path):
    """Not even on a row that other stages have; nor the tags by which that said that the stage ran."""
    params = make_project(tmp_path)
    with pytest.raises(UserError):
        refuse("base", params)
    assert runs_of(client_of(tmp_path), "pipeline") == []
    do("base", params)
    with pytest.raises(UserError):
        refuse("shard", params)
    (row,), (run,) = (runs_of(client_of(tmp_path), kind) for kind in ("pipeline", "stage"))
    assert (row.info.status, run.data.tags["stage"]) == ("FINISHED", "base")
    assert not [name for name in row.data.tags if name.startswith("stage.shard")]
    assert not (tmp_path / ".tracking-spool").exists()


@pytest.mark.parametrize("moment", ["measured", "late", "resumed"])
def test_what_is_refused_after_some_work_is_a_failure(tmp_path, monkeypatch, moment):
    params, before = make_project(tmp_path), ""
    monkeypatch.setattr(module, "REFUSED_WITHIN", -1.0 if moment == "late" else 60.0)
    if moment == "resumed":
        with tracking.stage_run("refine", params) as run:
            before = run.run_id
            run.log_metrics({"refine/loss": 1.0}, step=0)
    with pytest.raises(UserError):
        refuse("refine", params, before, [1.0] if moment == "measured" else [])
    [run] = runs_of(client_of(tmp_path), "stage")
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "UserError: params.yaml: a typo")


def test_a_row_carries_the_files_that_are_meant_for_it(tmp_path):
    params, page = make_project(tmp_path), tmp_path / "page.html"
    page.write_text("<p>Better.</p>")
    with tracking.stage_run("report", params) as run:
        run.log_artifact(page, on_row=True)
        log_note(run)
    client = client_of(tmp_path)
    (row,), (run,) = (runs_of(client, kind) for kind in ("pipeline", "stage"))
    assert [file.path for file in client.list_artifacts(row.info.run_id)] == ["page.html"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.md", "page.html"]
