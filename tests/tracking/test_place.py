"""Where store, artifacts and spools lie, and how clones that share a store are told apart."""

import shutil
from contextlib import chdir
from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.tracking.client import Client
from pipeline_lib.tracking.place import project_root, store_uri, workspace
from tests.tracked_project import (
    client_of,
    do,
    log_note,
    make_project,
    runs_of,
)


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
