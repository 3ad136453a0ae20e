"""`lineage show`, `sync` and `check`: against real stores, real spools, real DVC, and a real server that goes away."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline_lib import tracking
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.shard import run as shard
from pipeline_lib.tracking.spool import Spool
from tests import small_sets
from tests.small_sets import img2dataset, write
from tests.tracked_project import (
    CLOSED,
    ENVIRONMENT,
    LOOP,
    REPOSITORY,
    change,
    client_of,
    content,
    curve,
    do,
    doubled_points,
    empty_store,
    kill,
    log_note,
    make_project,
    python,
    runs_of,
    wait_until,
)


def write_output(folder: Path, stage: str, text: str) -> str:
    """An output folder with one file and its manifest; returns the digest."""
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text(text)
    return artifacts.write_manifest(folder, stage)


def pipeline(params: Path) -> None:
    """Three stages that log one thing of each kind."""
    do("base", params, "d-base", base__recall=0.2)
    do("shard", params, "d-shard", {"base": "d-base"})
    with tracking.stage_run("refine", params, upstream={"base": "d-base", "shard": "d-shard"}) as run:
        for step in range(100):
            run.log_metrics({"loss": 1.0 / (step + 1), "norm": float(step)}, step=step)
        log_note(run, "notes")
        run.dataset("data/shards/refine", "ab" * 32, "refine")
        run.headline({"refine/final_loss": 0.5})
        run.output("d-refine")


def test_what_was_spooled_and_sent_later_is_what_would_have_been_logged(tmp_path, monkeypatch):
    online = make_project(tmp_path / "online", mode="best_effort")
    pipeline(online)
    offline = make_project(tmp_path / "offline", mode="best_effort")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    pipeline(offline)
    assert len(list((tmp_path / "offline" / ".tracking-spool").glob("*.jsonl"))) == 3
    assert runs_of(client_of(tmp_path / "offline"), "stage") == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert lineage.sync(offline).count(": sent") == 3
    assert content(tmp_path / "offline") == content(tmp_path / "online")
    assert not (tmp_path / "offline" / ".tracking-spool").exists()
    assert ": sent" not in lineage.sync(offline)
    assert content(tmp_path / "offline") == content(tmp_path / "online")


def test_a_spool_that_cannot_be_sent_does_not_hold_up_the_others(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    broken = tmp_path / ".tracking-spool" / "base-000.jsonl"
    broken.parent.mkdir()
    broken.write_text('{"op": "metrics", "points": []}\n')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    do("shard", params)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(
        UserError, match=r"base-000.jsonl: not sent \(the line that began the run is broken.*\n.*: sent"
    ):
        lineage.sync(params)
    assert [run.data.tags["stage"] for run in runs_of(client_of(tmp_path), "stage")] == ["shard"]
    assert broken.exists()


def test_sync_closes_runs_cut_off_with_their_sender_and_leaves_living_ones_alone(tmp_path):
    params = make_project(tmp_path, mode="best_effort")
    client = client_of(tmp_path)
    process = python(LOOP, tmp_path)
    assert process.stdout.readline() == "there\n"
    wait_until(lambda: runs_of(client, "stage"))
    assert "still running" in lineage.sync(params)
    assert runs_of(client, "stage")[0].info.status == "RUNNING"
    kill(process, with_sender=True)
    assert ": sent" in lineage.sync(params)
    (run,), (row,) = (runs_of(client, kind) for kind in ("stage", "pipeline"))
    assert (run.info.status, row.data.tags["stage.refine"]) == ("KILLED", "killed")
    assert [step for step, _ in curve(client, run.info.run_id, "loss")] == list(range(16))
    assert doubled_points(tmp_path) == []


@pytest.mark.parametrize("second", ["online", "offline"])
def test_begun_without_a_server_and_killed_is_one_run_in_the_end(tmp_path, second):
    params = make_project(tmp_path, mode="best_effort")
    victim = python(LOOP, tmp_path, MLFLOW_TRACKING_URI=CLOSED)
    assert victim.stdout.readline() == "there\n"
    kill(victim)
    again = python(LOOP, tmp_path, **({"MLFLOW_TRACKING_URI": CLOSED} if second == "offline" else {}))
    assert again.wait(60) == 0, again.stderr.read()
    assert (": sent" in lineage.sync(params)) == (second == "offline")
    (run,) = runs_of(client_of(tmp_path), "stage")
    assert run.info.status == "FINISHED"
    assert curve(client_of(tmp_path), run.info.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(30)]
    assert doubled_points(tmp_path) == []
    assert not (tmp_path / ".tracking-spool").exists()


def test_sync_without_a_server_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort", store=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    do("base", params)
    with pytest.raises(UserError, match=r"nothing sent \(Connection refused\)"):
        lineage.sync(params)
    assert len(Spool.all(tmp_path)) == 1


def test_show_names_state_digest_and_run_of_every_stage(tmp_path):
    params = make_project(tmp_path)
    made = write_output(tmp_path / "data" / "base", "base", "weights")
    do("base", params, made)
    assert "no row" not in lineage.show(params)
    change(params, "num_examples: 8", "num_examples: 9")
    do("shard", params, write_output(tmp_path / "data" / "shards", "shard", "tars"), {"base": made})
    base, sharded = runs_of(client_of(tmp_path), "stage")
    lines = {line.split()[0]: line.split()[1:] for line in lineage.show(params).splitlines()[2:]}
    assert lines["base"] == ["reused", made[:12], base.info.run_id]
    assert lines["shard"][::2] == ["executed", sharded.info.run_id]
    assert lines["evaluate@refined"] == ["not", "made", "unknown"]
    assert list(lines) == [
        *("base", "shard", "cache_teacher", "refine", "evaluate@base", "evaluate@refined", "report"),
    ]


def test_show_names_the_run_that_made_what_lies_there_not_the_one_of_the_row(tmp_path):
    params = make_project(tmp_path)
    refined = tmp_path / "data" / "refined"
    do("refine", params, write_output(refined, "refine", "weights of A"))
    change(params, "recipe: clip_refine", "recipe: hycd")
    shutil.rmtree(refined)
    made = write_output(refined, "refine", "weights of B")
    do("refine", params, made)
    change(params, "recipe: hycd", "recipe: clip_refine")  # back, and not reproduced
    _, second = runs_of(client_of(tmp_path), "stage")

    def shown() -> list[str]:
        (line,) = [line for line in lineage.show(params).splitlines() if line.startswith("refine ")]
        return line.split()[1:]

    assert shown() == ["there", made[:12], second.info.run_id]
    with pytest.raises(RuntimeError), tracking.stage_run("refine", params):
        raise RuntimeError("out of memory")
    assert shown() == ["failed", runs_of(client_of(tmp_path), "stage")[2].info.run_id]  # no output is its own


def test_show_neither_needs_nor_makes_a_store(tmp_path):
    params = make_project(tmp_path, store=False)
    write_output(tmp_path / "data" / "base", "base", "weights")
    text = lineage.show(params)
    assert "there is no store yet" in text
    assert "there" in text.splitlines()[2]
    assert not (tmp_path / "mlflow.db").exists()


def test_check_lists_every_difference_and_its_exit_code_says_so(tmp_path):
    make_project(tmp_path, store=False)
    for stage, folder in (("base", "base"), ("refine", "refined"), ("cache_teacher", "pixels")):
        write_output(tmp_path / "data" / folder, stage, "content")

    def check() -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline_lib.lineage", "check"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    for stage, folder in (("shard", "shards"), ("cache_teacher", "teacher"), ("report", "report")):
        write_output(tmp_path / "data" / folder, stage, "content")
    for stage, folder, parts in (("shard", "shards", {}), ("cache_teacher", "teacher", {"refine": {"num_invalid": 0}})):
        artifacts.write_manifest(tmp_path / "data" / folder, stage, parts=parts)
    for evaluated in ("base", "refined"):
        write_output(tmp_path / "data" / "eval" / evaluated, "evaluate", "content")
    assert check() == (0, "7 outputs agree with their manifests\n")
    shutil.rmtree(tmp_path / "data" / "teacher")
    (tmp_path / "data" / "base" / "file.txt").write_text("CONTENT")
    (tmp_path / "data" / "refined" / "foreign").write_text("x")
    (tmp_path / "data" / "pixels" / "file.txt").unlink()
    (tmp_path / "data" / "report" / "manifest.json").unlink()  # unfinished
    code, text = check()
    assert code == 1
    assert text.startswith("error: 5 differences")
    for problem in (
        "data/teacher/manifest.json: no such file, so data/teacher is missing",
        "data/base/file.txt: SHA-256 differs",
        "data/refined/foreign: not in the manifest",
        "data/pixels/file.txt: missing",
        "data/report/manifest.json: no such file",
    ):
        assert problem in text


def test_check_reads_the_tars_that_shards_only_index(tmp_path, monkeypatch):
    """They lie outside the folder whose manifest tells their hashes."""
    monkeypatch.chdir(tmp_path)
    params = make_project(tmp_path, store=False)
    img2dataset(tmp_path / "tars")
    write(tmp_path / "trained_on.jsonl", "")
    shard.run(
        small_sets.data("tars", "webdataset", parts={"refine": 1.0}),
        small_sets.settings(),
        trained_on=Path("trained_on.jsonl"),
        target=Path("data/shards"),
        fingerprint="x",
        num_workers=1,
        progress=False,
    )
    assert "tars/" not in "".join(lineage.check_outputs(params))
    content = bytearray(Path("tars/00001.tar").read_bytes())
    content[600] ^= 1
    Path("tars/00001.tar").write_bytes(content)
    assert "tars/00001.tar: SHA-256 differs from the manifest" in lineage.check_outputs(params)


STAGE = """
import sys
from pathlib import Path
from pipeline_lib.core import artifacts, config; from pipeline_lib import tracking

stage, source, target, section, key = sys.argv[1:]
params = Path("params.yaml")
value = config.raw_section(params, section)[key]
upstream = {source.split("=")[0]: artifacts.read_manifest(Path(source.split("=")[1]))["digest"]} if source else {}
with tracking.stage_run(stage, params, upstream=upstream) as run:
    Path(target).mkdir(parents=True)
    Path(target, "value").write_text("always the same" if stage == "shard" else f"{value} {upstream}")
    run.headline({f"{stage}/value": float(value)})
    run.output(artifacts.write_manifest(Path(target), stage))
"""


GRAPH = """
stages:
  base:
    cmd: python stage.py base "" data/base report num_examples
    params: [report.num_examples]
    outs: [data/base]
  shard:
    cmd: python stage.py shard base=data/base data/shards shard samples_per_shard
    deps: [data/base]
    params: [shard.samples_per_shard]
    outs: [data/shards]
  refine:
    cmd: python stage.py refine shard=data/shards data/refined refine batch_size
    deps: [data/shards]
    params: [refine.batch_size]
    outs: [data/refined]
"""


def call(root: Path, command: str) -> str:
    """A command line in `root`, with this Python first on the PATH."""
    env = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    env |= {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    done = subprocess.run(command.split(), cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def states(row) -> dict[str, str]:
    return {s: row.data.tags.get(f"stage.{s}", "") for s in ("base", "shard", "refine")}


@pytest.mark.slow
def test_sync_completes_rows_with_what_dvc_took_from_its_caches(tmp_path):
    params = make_project(tmp_path)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    call(tmp_path, "dvc init --no-scm -q")
    call(tmp_path, "dvc repro")
    change(params, "  batch_size: 64\n  micro", "  batch_size: 32\n  micro")
    call(tmp_path, "dvc repro")
    client = client_of(tmp_path)
    first, second = runs_of(client, "pipeline")
    assert states(first) == {"base": "executed", "shard": "executed", "refine": "executed"}
    assert states(second) == {"base": "reused", "shard": "reused", "refine": "executed"}

    # Another base, and the first batch size again: `shard` gives the same bytes, so `refine` comes from the run-cache.
    change(params, "num_examples: 8", "num_examples: 9")
    change(params, "  batch_size: 32\n  micro", "  batch_size: 64\n  micro")
    call(tmp_path, "dvc repro")
    assert states(runs_of(client, "pipeline")[2]) == {"base": "executed", "shard": "executed", "refine": ""}
    call(tmp_path, "python -m pipeline_lib.lineage sync")
    third = runs_of(client, "pipeline")[2]
    assert states(third) == {"base": "executed", "shard": "executed", "refine": "reused"}
    assert third.data.tags["stage.refine.run_id"] == first.data.tags["stage.refine.run_id"]
    assert (third.data.metrics["base/value"], third.data.metrics["refine/value"]) == (9, 64)

    # A configuration for which no stage had to run at all.
    change(params, "  batch_size: 64\n  micro", "  batch_size: 32\n  micro")
    assert "no row" in call(tmp_path, "python -m pipeline_lib.lineage sync")  # not reproduced yet
    call(tmp_path, "dvc repro")
    assert len(runs_of(client, "pipeline")) == 3
    for _ in range(2):
        call(tmp_path, "python -m pipeline_lib.lineage sync")
        rows = runs_of(client, "pipeline")
        assert len(rows) == 4
    assert states(rows[3]) == dict.fromkeys(("base", "shard", "refine"), "reused")
    assert rows[3].info.status == "FINISHED"
    assert (rows[3].data.metrics["base/value"], rows[3].data.metrics["refine/value"]) == (9, 32)
    assert rows[3].data.tags["stage.refine.run_id"] == second.data.tags["stage.refine.run_id"]
    assert rows[3].data.tags["stage.base.run_id"] == third.data.tags["stage.base.run_id"]
    assert len(runs_of(client, "stage")) == 6  # nothing was logged as if it had been measured again


class Server:
    """A real `mlflow server` on loopback that can be stopped, started and frozen."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        shutil.copyfile(empty_store(), folder / "mlflow.db")
        self._folder, self._process = folder, None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
        command += ["--artifacts-destination", "artifacts", "--host", "127.0.0.1", "--port", str(self.port)]
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*command, "--workers", "1"], cwd=self._folder, stdout=log, stderr=log, start_new_session=True
        )
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.3)
        raise AssertionError((self._folder / "log").read_text()[-2000:])

    def send(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_real_server_that_freezes_and_one_that_dies_lose_nothing(tmp_path, server, caplog):
    params = make_project(tmp_path / "project", mode="best_effort", store=False)
    do("base", params, "d-base")
    assert not (tmp_path / "project" / "mlflow.db").exists()
    lineage.sync(params)  # on a busy machine the server may take longer than a stage of no length waits
    caplog.clear()

    server.send(signal.SIGSTOP)  # it takes connections and never answers
    began = time.monotonic()
    do("shard", params, "d-shard", {"base": "d-base"})
    assert time.monotonic() - began < 10
    server.send(signal.SIGCONT)

    with tracking.stage_run("refine", params, upstream={"base": "d-base", "shard": "d-shard"}) as run:
        slowest = 0.0
        for step in range(300):
            began = time.perf_counter()
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            slowest = max(slowest, time.perf_counter() - began)
            if step == 100:
                run.flush()
                time.sleep(3)
                server.stop()
            if step % 50 == 0:
                run.flush()
        log_note(run)
        run.output("d-refine")
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert slowest < 0.1
    assert len(Spool.all(tmp_path / "project")) == 2
    assert len([r for r in caplog.records if r.name.startswith("pipeline_lib") and "spooled" in r.getMessage()]) == 2

    server.start()
    for _ in range(2):
        lineage.sync(params)
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    (row,) = runs_of(client, "pipeline")
    assert states(row) == dict.fromkeys(("base", "shard", "refine"), "executed")
    assert [run.info.status for run in runs_of(client, "stage")] == ["FINISHED"] * 3
    run = client.get_run(row.data.tags["stage.refine.run_id"])
    assert curve(client, run.info.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(300)]
    assert doubled_points(tmp_path / "server") == []
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.md"]


class Slow(BaseHTTPRequestHandler):
    """Hands every request on to a real server, and its answer back a second later."""

    behind = ""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        request = urllib.request.Request(self.behind + self.path, body, dict(self.headers), method=self.command)
        time.sleep(1.0)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                code, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            code, content = error.code, error.read()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_slow_server_holds_up_neither_the_loop_nor_the_end(tmp_path, server, monkeypatch):
    """A second for every request: a run is a dozen of them, more than a stage waits for."""
    params = make_project(tmp_path / "project", mode="best_effort", store=False)
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Slow,), {"behind": server.uri}))
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gateway.server_port}")
    began, slowest = time.monotonic(), 0.0
    with tracking.stage_run("refine", params) as run:
        for step in range(500):
            before = time.perf_counter()
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
            slowest = max(slowest, time.perf_counter() - before)
            if step % 100 == 0:
                run.flush()
        run.output("d-refine")
    assert time.monotonic() - began < 10
    assert slowest < 0.1
    gateway.shutdown()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    lineage.sync(params)
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    (run,) = runs_of(client, "stage")
    assert run.info.status == "FINISHED"
    assert curve(client, run.info.run_id, "loss") == [(step, 1.0 / (step + 1)) for step in range(500)]
    assert doubled_points(tmp_path / "server") == []
