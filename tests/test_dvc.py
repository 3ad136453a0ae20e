"""Real DVC on a tiny project: what re-runs, what does not, and that a second clone writes the same dvc.lock.

Slow: each test runs the whole pipeline as a user does. The project's own dvc.yaml and code are used as they are; only
params.yaml, the data and the model are small.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny_project import ROOT, make_project, write_params

pytestmark = pytest.mark.slow
COPIED = ("stages", "pipeline_lib", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "pyproject.toml")


def run(project, *command, check=True, **env):
    """A command as a user types it in `project`; returns its output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        **env,
    }
    environment.pop("DVC_ROOT", None)
    done = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, timeout=400)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output


def make_repository(directory, **values):
    """A git and DVC repository with the project's code and the tiny project's data, committed."""
    directory.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, directory / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    make_project(directory, **{"tracking__mode": "best_effort", "evaluate__wise_ft": [0.5], **values})
    run(directory, "git", "init", "-q")
    run(directory, "dvc", "init", "-q")
    run(directory, "dvc", "config", "cache.type", "hardlink,copy")
    run(directory, "git", "add", ".")
    run(directory, "git", "commit", "-qm", "start")
    return directory


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A repository in which `dvc repro` ran once, and what it printed."""
    repository = make_repository(tmp_path_factory.mktemp("dvc") / "repository")
    output = run(repository, "dvc", "repro")
    run(repository, "git", "add", ".")
    run(repository, "git", "commit", "-qm", "results")
    return repository, output


@pytest.fixture
def repository(baseline, tmp_path):
    return shutil.copytree(baseline[0], tmp_path / "repository", symlinks=True)


def ran(output):
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


ALL = ["base", "shard", "cache_teacher", "refine", "evaluate@base", "evaluate@refined", "report"]


def test_all_stages_run_once_and_then_none(baseline, repository):
    assert sorted(ran(baseline[1])) == sorted(ALL)
    output = run(repository, "dvc", "repro")
    assert ran(output) == []
    assert "Data and pipelines are up to date." in output
    assert run(repository, "dvc", "status").strip() == "Data and pipelines are up to date."
    assert run(repository, "git", "status", "--short") == ""


def test_another_recipe_reruns_refine_evaluate_and_report_only(repository):
    output = run(repository, "dvc", "exp", "run", "-S", "refine.recipe=hycd", "-S", "refine.learning_rate=5e-4")
    assert sorted(ran(output)) == ["evaluate@refined", "refine", "report"]
    assert yaml.safe_load((repository / "params.yaml").read_text())["refine"]["recipe"] == "hycd"
    header = (repository / "data/refined/history.jsonl").read_text().splitlines()[0]
    assert "hycd_loss" in header
    assert '"learning_rate": 0.0005' in header
    assert "rafa_loss" not in header


def test_swapping_the_params_file_does_the_same_and_going_back_is_free(repository):
    lock = (repository / "dvc.lock").read_bytes()
    original = (repository / "params.yaml").read_bytes()
    write_params(repository, tracking__mode="best_effort", evaluate__wise_ft=[0.5], refine__recipe="contrastive")
    assert sorted(ran(run(repository, "dvc", "repro"))) == ["evaluate@refined", "refine", "report"]
    assert (repository / "dvc.lock").read_bytes() != lock
    (repository / "params.yaml").write_bytes(original)
    assert ran(run(repository, "dvc", "repro")) == []  # from the run-cache
    assert (repository / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize(
    "values",
    [
        {"runtime__num_workers": 1, "runtime__checkpoint_every": 7},
        {"tracking__experiment": "other"},
        {"recipes__hycd__alpha": 0.1},
    ],
)
def test_what_decides_no_result_reruns_nothing(repository, values):
    write_params(repository, tracking__mode="best_effort", evaluate__wise_ft=[0.5], **values)
    assert ran(run(repository, "dvc", "repro", "--dry")) == []


def test_a_changed_caption_reruns_what_it_must(repository):
    captions = repository / "set" / "captions.jsonl"
    captions.write_text(captions.read_text().replace('drawing number 1"', 'sketch number 1"'))
    assert ran(run(repository, "dvc", "repro", "--dry"))[0] in ("base", "shard")
    output = run(repository, "dvc", "repro")
    assert "shard" in ran(output)
    assert "refine" in ran(output)


def test_a_second_clone_writes_the_same_lock(baseline, tmp_path):
    """dvc.lock is a determinism test: another folder, an empty cache, the same bytes."""
    clone = tmp_path / "somewhere" / "else"
    clone.parent.mkdir()
    run(tmp_path, "git", "clone", "-q", str(baseline[0]), str(clone))
    output = run(clone, "dvc", "repro")
    assert sorted(ran(output)) == sorted(ALL)
    assert run(clone, "git", "status", "--short") == ""


def test_a_failed_stage_fails_dvc_and_leaves_nothing_half_written(repository):
    write_params(repository, tracking__mode="best_effort", evaluate__wise_ft=[0.5], refine__learning_rate=1e30)
    output = run(repository, "dvc", "repro", check=False)
    assert "ERROR: failed to reproduce 'refine'" in output
    assert "the loss is not finite at step" in output
    assert not (repository / "data/refined").exists()


def test_push_and_pull_through_a_remote(baseline, tmp_path):
    """A clone that pulls runs nothing; the pixels stay behind and are made again only if something needs them."""
    source = shutil.copytree(baseline[0], tmp_path / "source", symlinks=True)
    run(source, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    run(source, "git", "commit", "-qam", "remote")
    run(source, "dvc", "push")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(source), str(clone))
    run(clone, "dvc", "pull", "--allow-missing")
    for name in ("base", "shards", "teacher", "refined", "eval/base", "eval/refined", "report"):
        assert (clone / "data" / name / "manifest.json").is_file()
    assert not (clone / "data/pixels").exists()
    assert ran(run(clone, "dvc", "repro", "--allow-missing", "--dry")) == []
