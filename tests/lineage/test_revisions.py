"""Revisions and DVC experiments: read from git and DVC, not from the workspace."""

import subprocess
from pathlib import Path

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage import commands as lineage
from pipeline_lib.lineage.revisions import Snapshot, open_snapshot
from tests.tracked_project import (
    change,
    make_project,
)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_an_experiment_and_a_revision_are_told_by_their_own_parameters_and_code(tmp_path, monkeypatch):
    """Not by those of the workspace; the newest experiment of a name wins, and no such revision is one sentence."""
    params = make_project(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "base.py").write_text("1")
    git(tmp_path, "init", "-q")
    (tmp_path / "dvc.yaml").write_text("stages:\n  base:\n    cmd: echo\n    deps:\n      - stages/base.py\n")
    git(tmp_path, "add", "params.yaml", "dvc.yaml", "stages")
    git(tmp_path, "commit", "-qm", "one")
    baseline = git(tmp_path, "rev-parse", "HEAD")
    change(params, "num_examples: 8", "num_examples: 9")
    for name in ("two", "three"):
        git(tmp_path, "commit", "-qam", name, "--allow-empty")
        git(tmp_path, "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/mine", "HEAD")
    (tmp_path / "stages" / "base.py").write_text("2")
    with open_snapshot(params, "mine") as snapshot:
        origin = {"dvc.exp_name": "mine", "dvc.exp_baseline": baseline, "git.dirty": "false"}
        assert snapshot.origin == {**origin, "mlflow.source.git.commit": git(tmp_path, "rev-parse", "HEAD")}
        mine = snapshot.start_op()
        assert mine["params"]["report.num_examples"] == "9"
    with open_snapshot(params, baseline) as snapshot:
        assert snapshot.origin == {"mlflow.source.git.commit": baseline, "git.dirty": "false"}
        first = snapshot.start_op()
        assert first["params"]["report.num_examples"] == "8"
        assert (snapshot.params_file.parent / "stages" / "base.py").read_text() == "1"
    configurations = {op["tags"]["pipeline.config"] for op in (mine, first, Snapshot(params).start_op())}
    assert len(configurations) == 3
    assert mine["row"] == "mine"
    with pytest.raises(UserError, match="git rev-parse nothing"):
        lineage.show(params, "nothing")
