"""Stores that are old, deleted, new to several processes at once, and names with quotes."""

import sqlite3

import pytest

from pipeline_lib.core.errors import UserError
from tests.tracked_project import (
    client_of,
    do,
    make_project,
    python,
    runs_of,
)


def test_a_store_of_another_version_is_one_sentence(tmp_path):
    params = make_project(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(UserError, match="is of a newer MLflow than the one installed"):
        do("base", params)


def test_an_experiment_in_the_bin_is_named_with_the_remedy(tmp_path):
    params = make_project(tmp_path)
    do("base", params)
    client = client_of(tmp_path)
    client.delete_experiment(client.get_experiment_by_name("clip-refine").experiment_id)
    with pytest.raises(UserError, match=r"tracking\.experiment: `clip-refine` was deleted"):
        do("base", params)


def test_names_with_an_apostrophe_are_found(tmp_path, monkeypatch):
    params = make_project(tmp_path)
    monkeypatch.setenv("DVC_EXP_NAME", "it's")
    do("base", params)
    do("shard", params)
    assert [row.info.run_name for row in runs_of(client_of(tmp_path), "pipeline")] == ["it's"]


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
