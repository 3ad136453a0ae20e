"""Rows: what they hold, which runs share one, how reused and late outputs are marked on them."""

import pytest

from pipeline_lib import tracking
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.lineage.revisions import Snapshot
from pipeline_lib.tracking import rows
from pipeline_lib.tracking.client import Client
from pipeline_lib.tracking.delivery import deliver
from pipeline_lib.tracking.describe import start_op
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.tracking.store import Store
from tests.tracked_project import (
    CLOSED,
    LOOP,
    change,
    client_of,
    do,
    kill,
    make_project,
    python,
    runs_of,
    wait_until,
)


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


def test_a_row_that_was_deleted_is_made_anew_for_what_comes_later(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    process = python(LOOP, tmp_path)
    assert process.stdout.readline() == "there\n"
    client = client_of(tmp_path)
    wait_until(lambda: runs_of(client, "stage"))
    kill(process, with_sender=True)
    (deleted,) = runs_of(client, "pipeline")
    client.delete_run(deleted.info.run_id)
    assert ": sent" in lineage.sync(params)
    (row,), (run,) = runs_of(client, "pipeline"), runs_of(client, "stage")
    assert run.data.tags["mlflow.parentRunId"] == row.info.run_id
    assert len(row.data.params) == len(deleted.data.params)


def test_two_experiments_of_one_name_keep_their_own_rows(tmp_path, monkeypatch):
    # DVC keeps the first of two experiments that were run in temporary folders under one name; the second one failed.
    params = make_project(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    do("report", params, "d-report", verdict="better", recall=0.5)
    change(params, "learning_rate: 5e-5", "learning_rate: 1e30")
    with pytest.raises(RuntimeError), tracking.stage_run("report", params):
        raise RuntimeError("not finite")
    client = client_of(tmp_path)
    good, failed = runs_of(client, "pipeline")
    store = Client(tmp_path, "clip-refine")
    assert rows.row_of(store, start_op("lineage", params, {})).run_id == failed.info.run_id
    change(params, "learning_rate: 1e30", "learning_rate: 5e-5")
    described = start_op("lineage", params, {})
    assert rows.row_of(store, described).run_id == good.info.run_id
    rows.complete(store, described, {"report": "d-report"}, {})
    assert "verdict" not in client.get_run(failed.info.run_id).data.tags
    assert client.get_run(failed.info.run_id).info.status == "FAILED"


def test_a_row_whose_outputs_came_from_elsewhere_takes_its_numbers_from_the_report(tmp_path):
    # As in a clone that pulled: the runs that made the outputs are in another store.
    params = make_project(tmp_path)
    do("base", params, "d-base")
    store = Client(tmp_path, "clip-refine")
    headlines = {"eval/image_to_text_recall_at_1": 0.25, "verdict": "No measurable change"}
    row = rows.complete(store, start_op("lineage", params, {}), {"base": "d-base", "report": "d-report"}, headlines)
    assert row.metrics == {"eval/image_to_text_recall_at_1": 0.25}
    assert (row.tags["verdict"], row.tags["headlines.from"]) == ("No measurable change", "the report's file")
    assert (row.tags["stage.base"], row.tags["stage.report.run_id"]) == ("executed", "unknown")


def test_a_stage_sent_later_takes_its_place_in_the_row_that_went_on_without_it(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    do("base", params, "d-base")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    do("shard", params, "d-shard", {"base": "d-base"})
    (row,), (shard,) = (runs_of(client_of(tmp_path), kind) for kind in ("pipeline", "stage"))
    assert "stage.base" not in row.data.tags  # it was executed, not reused; the spool knows
    assert shard.data.tags["upstream.base.run_id"] == "unknown"
    lineage.sync(params)
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    base = client_of(tmp_path).get_run(row.data.tags["stage.base.run_id"])
    assert row.data.tags["stage.base"] == "executed"
    assert base.data.tags["mlflow.parentRunId"] == row.info.run_id


def test_what_arrives_late_is_named_in_every_row_that_reused_it(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", CLOSED)
        do("base", params, "b", base__recall=0.1)
    do("refine", params, "r1", {"base": "b"})
    change(params, "recipe: clip_refine", "recipe: hycd")
    do("refine", params, "r2", {"base": "b"})
    store = Client(tmp_path, "clip-refine")
    (spool,) = Spool.all(tmp_path)
    assert deliver(spool, Store(store))
    rows.complete(store, Snapshot(params).start_op(), {"base": "b", "refine": "r2"}, {})
    base, *refined = runs_of(client_of(tmp_path), "stage")
    first, second = runs_of(client_of(tmp_path), "pipeline")
    assert [run.data.tags["upstream.base.run_id"] for run in refined] == [base.info.run_id] * 2
    assert (second.data.tags["stage.base"], second.data.tags["stage.base.run_id"]) == ("reused", base.info.run_id)
    assert (first.data.metrics, second.data.metrics) == ({"base/recall": 0.1}, {"base/recall": 0.1})


def test_an_attempt_that_arrives_late_does_not_undo_what_came_after_it(tmp_path, monkeypatch):
    params = make_project(tmp_path, mode="best_effort")
    do("base", params, "b")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", CLOSED)
        with pytest.raises(RuntimeError), tracking.stage_run("refine", params, upstream={"base": "b"}):
            raise RuntimeError("out of memory")
    do("refine", params, "r", {"base": "b"}, refined__recall=0.3)
    (spool,) = Spool.all(tmp_path)
    before = runs_of(client_of(tmp_path), "pipeline")
    assert deliver(spool, Store(Client(tmp_path, "clip-refine")))
    (row,) = runs_of(client_of(tmp_path), "pipeline")
    assert (row.data.tags, row.data.metrics, row.info) == (before[0].data.tags, before[0].data.metrics, before[0].info)
    runs = runs_of(client_of(tmp_path), "stage")
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {row.info.run_id}


def test_a_row_is_well_again_once_the_output_of_its_killed_stage_is_there(tmp_path):
    params = make_project(tmp_path)
    do("refine", params, "r", {"base": "b"})
    change(params, "num_examples: 8", "num_examples: 9")
    do("base", params, "b")
    with pytest.raises(KeyboardInterrupt), tracking.stage_run("refine", params):
        raise KeyboardInterrupt
    row = runs_of(client_of(tmp_path), "pipeline")[1]
    assert (row.info.status, row.data.tags["stage.refine"]) == ("KILLED", "killed")
    assert "error" in row.data.tags
    store, described = Client(tmp_path, "clip-refine"), Snapshot(params).start_op()
    for _ in range(2):
        rows.complete(store, described, {"base": "b", "refine": "r"}, {})
        again = client_of(tmp_path).get_run(row.info.run_id)
        assert (again.info.status, again.data.tags["stage.refine"]) == ("FINISHED", "reused")
        assert "error" not in again.data.tags
