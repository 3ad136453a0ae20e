"""What is said of a run: configuration, names, parameters without secrets, git."""

import subprocess

from pipeline_lib.tracking.describe import configuration, flatten, git_tags, resolved
from pipeline_lib.tracking.text import public
from tests.tracked_project import (
    change,
    client_of,
    do,
    make_project,
    runs_of,
)


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
    project = tmp_path / "projects/clip"  # below the repository's root: its own files count, by its own names
    (project / "stages").mkdir(parents=True)
    (project / "stages/new.py").write_text("2")
    assert git_tags(project)["git.changed"] == "stages/new.py"
