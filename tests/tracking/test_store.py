"""Operations carried out on runs: artifacts, data sets, points, the end of killed and resumed runs."""

import itertools
import math
import time
from contextlib import suppress

import pytest

from pipeline_lib import tracking
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import Stopped
from tests.tracked_project import (
    LOOP,
    change,
    client_of,
    curve,
    do,
    doubled_points,
    kill,
    log_note,
    make_project,
    python,
    runs_of,
)


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


def test_not_a_number_and_odd_names_do_not_stop_anything(tmp_path):
    params = make_project(tmp_path)
    with tracking.stage_run("refine", params) as run:
        run.log_metrics({"loss": math.nan, "norm": math.inf, "recall@1": 0.5}, step=3)
    metrics = runs_of(client_of(tmp_path), "stage")[0].data.metrics
    assert math.isnan(metrics["loss"])
    assert metrics["norm"] > 1e300
    assert metrics["recall-1"] == 0.5


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


def test_after_a_power_cut_a_deleted_row_stops_nobody(tmp_path):
    params = make_project(tmp_path)
    victim = python(LOOP, tmp_path)
    assert victim.stdout.readline() == "there\n"
    kill(victim, with_sender=True)
    client = client_of(tmp_path)
    client.delete_run(runs_of(client, "pipeline")[0].info.run_id)
    do("base", params)
    assert [run.info.status for run in runs_of(client, "stage")] == ["KILLED", "FINISHED"]


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
