"""`make ui`: the store is whole and its views are current before MLflow's server opens it."""

import os
import sqlite3
import sys
from contextlib import closing

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage.__main__ import main
from tests.tracked_project import CLOSED, client_of, do, make_project


@pytest.fixture
def started(monkeypatch):
    """The commands that this process would have become."""
    commands = []
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION")  # after the test it is as it was before
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def call(params, monkeypatch):
    monkeypatch.chdir(params.parent)
    main(["ui", "--port", "5432"])


def test_a_project_without_a_store_gets_a_whole_one_before_the_server_starts(tmp_path, monkeypatch, started, capsys):
    call(make_project(tmp_path, store=False), monkeypatch)
    experiment = client_of(tmp_path).get_experiment_by_name("clip-refine")
    addresses = [line.split(": ", 1)[1].strip() for line in capsys.readouterr().out.splitlines()[:2]]
    start = f"http://127.0.0.1:5432/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    assert all(address.startswith(start) for address in addresses)
    [command] = started
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert f"sqlite:///{tmp_path}/mlflow.db" in command
    assert command[-2:] == ["--workers", "1"]
    assert os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_views_of_an_earlier_version_become_current_and_keep_their_columns(tmp_path, monkeypatch, started):
    params = make_project(tmp_path)
    do("report", params, set__recall=0.1, verdict="Better.")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        view = '{"name": "x", "state": "{\\"selectedColumns\\": []}"}'
        database.execute("update experiment_tags set value = ? where key like '%.curves'", (view,))
    call(params, monkeypatch)
    tags = client_of(tmp_path).get_experiment_by_name("clip-refine").tags
    assert "refine_run/weight_displacement_percent" in tags["mlflow.sharedViewState.curves"]
    assert "set/recall" in tags["mlflow.sharedViewState.configurations"]


def test_a_server_that_is_gone_is_one_sentence_without_its_password(tmp_path, monkeypatch, started):
    params = make_project(tmp_path, store=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    with pytest.raises(
        UserError, match=r"^MLflow at http://\*\*\*@127.0.0.1:9 failed \(Connection refused\); run the command again$"
    ):
        call(params, monkeypatch)
    assert not started
