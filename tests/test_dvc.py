"""Real DVC and real MLflow on a tiny project: what re-runs, what a second clone writes, and that every way to run it
(repro, experiments in the workspace, in a queue and in temporary folders, a clone, a tarball without git) fills the
one store of the project in the same manner.

Slow: each test runs the whole pipeline as a user does. The project's own dvc.yaml and code are used as they are; only
params.yaml, the data and the model are small.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from pipeline_lib.core import artifacts, provenance
from tests.tiny_project import ROOT, make_project, write_params
from tests.tracked_project import ENVIRONMENT, client_of, doubled_points, runs_of

pytestmark = pytest.mark.slow
TRACKED = {"tracking__mode": "best_effort", "evaluate__wise_ft": [0.5]}
COPIED = ("stages", "pipeline_lib", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "pyproject.toml")


def run(project, *command, check=True, **env):
    """A command as a user types it in `project`; returns its output."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ENVIRONMENT},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        **env,
    }
    with tempfile.TemporaryFile("w+") as file:  # not a pipe: a queue's workers would hold it open
        done = subprocess.run(command, cwd=project, env=environment, stdout=file, stderr=file, timeout=400)
        file.seek(0)
        output = file.read()
    assert not check or done.returncode == 0, output
    return output


def make_repository(directory, **values):
    """A git and DVC repository with the project's code and the tiny project's data, committed."""
    directory.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, directory / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    make_project(directory, **{**TRACKED, **values})
    run(directory, "git", "init", "-q")
    run(directory, "dvc", "init", "-q")
    for name in ("config", "plots.html"):
        shutil.copyfile(ROOT / ".dvc" / name, directory / ".dvc" / name)
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
IN_MLFLOW = [stage.replace("@", "-") for stage in ALL]


def rows_by_name(project):
    """The rows of the project's store, each seen to be whole: ended, with every stage and the headlines."""
    rows = {row.info.run_name: row for row in runs_of(client_of(project), "pipeline")}
    for row in rows.values():
        assert row.info.status == "FINISHED"
        assert [stage for stage in IN_MLFLOW if f"stage.{stage}" not in row.data.tags] == []
        assert {"eval/image_to_text_log_rank", "eval/centroid_distance"} <= set(row.data.metrics)
        assert row.data.tags["verdict"].endswith(".")
    return rows


def executed(row):
    return [stage for stage in IN_MLFLOW if row.data.tags[f"stage.{stage}"] == "executed"]


def check_artifacts(project):
    """Everything logged lies in the project's own folder, is there, and no word of the store names a temporary one."""
    runs = runs_of(client_of(project), "stage")
    for run in runs:
        place = project / "mlartifacts" / run.info.run_id / "artifacts"
        assert run.info.artifact_uri == place.as_uri()
    assert all((project / "mlartifacts" / r.info.run_id).is_dir() for r in runs if r.data.tags["stage"] == "report")
    with sqlite3.connect(project / "mlflow.db") as database:
        assert "/.dvc/tmp/" not in "\n".join(database.iterdump())
    assert doubled_points(project) == []
    assert not (project / ".tracking-spool").exists()


def test_all_stages_run_once_and_then_none(baseline, repository):
    assert sorted(ran(baseline[1])) == sorted(ALL)
    output = run(repository, "dvc", "repro")
    assert ran(output) == []
    assert "Data and pipelines are up to date." in output
    assert run(repository, "dvc", "status").strip() == "Data and pipelines are up to date."
    assert run(repository, "git", "status", "--short") == ""


def test_another_recipe_reruns_refine_evaluate_and_report_only(repository):
    """And its row in MLflow says so, with the runs of the first row that made what was reused."""
    shutil.rmtree(repository / "mlartifacts")
    (repository / "mlflow.db").unlink()  # its artifacts lie in the folder that this one is a copy of
    run(repository, "dvc", "repro", "-f")
    output = run(
        repository, "dvc", "exp", "run", "-n", "mine", "-S", "refine.recipe=hycd", "-S", "refine.learning_rate=5e-4"
    )
    assert sorted(ran(output)) == ["evaluate@refined", "refine", "report"]
    assert yaml.safe_load((repository / "params.yaml").read_text())["refine"]["recipe"] == "hycd"
    header = (repository / "data/refined/history.jsonl").read_text().splitlines()[0]
    assert "hycd_loss" in header
    assert '"learning_rate": 0.0005' in header
    assert "rafa_loss" not in header
    rows = rows_by_name(repository)
    (first,) = (row for name, row in rows.items() if name != "mine")
    assert executed(first) == IN_MLFLOW
    assert executed(rows["mine"]) == ["refine", "evaluate-refined", "report"]
    assert rows["mine"].data.params["refine.learning_rate"] == "0.0005"
    for stage in ("base", "shard", "cache_teacher", "evaluate-base"):
        assert rows["mine"].data.tags[f"stage.{stage}.run_id"] == first.data.tags[f"stage.{stage}.run_id"]
    for run_id in (row.data.tags["stage.evaluate-refined.run_id"] for row in rows.values()):
        inputs = client_of(repository).get_run(run_id).inputs.dataset_inputs
        parts = artifacts.read_manifest(repository / "data/shards")["parts"]
        assert {i.dataset.name: i.dataset.digest for i in inputs} == {n: parts[n][:36] for n in ("val", "eval")}
    made = client_of(repository).get_run(first.data.tags["stage.cache_teacher.run_id"])
    assert sorted(i.dataset.name for i in made.inputs.dataset_inputs) == ["refine", "val"]
    check_artifacts(repository)
    check_dvc_pages(repository, "mine")


def check_dvc_pages(repository, experiment):
    """DVC's own comparisons against HEAD: the same few numbers as MLflow's table, the parameters, the images."""
    numbers = json.loads(run(repository, "dvc", "metrics", "diff", "--json", "--all", "HEAD", experiment))
    (changes,) = numbers["diff"].values() if "diff" in numbers else numbers.values()
    row = rows_by_name(repository)[experiment]
    measured = {name: value for name, value in row.data.metrics.items() if not name.endswith("_adjusted_p")}
    assert {k: v["new"] for k, v in changes.items() if k != "verdict"} == measured
    assert changes["verdict"]["new"] == row.data.tags["verdict"]
    every = run(repository, "dvc", "metrics", "diff", "HEAD", experiment, "--targets", "data/eval/refined.json")
    assert "eval.image_to_text_recall_at_5" in every
    params = json.loads(run(repository, "dvc", "params", "diff", "--json", "HEAD", experiment))
    assert set(params["params.yaml"]) == {"refine.recipe", "refine.learning_rate"}
    grid = run(repository, "dvc", "exp", "show", "--csv").splitlines()
    head = grid[0].split(",")
    assert {name for name in head if name.startswith("eval/")} == set(measured)
    assert any(experiment in line for line in grid[1:])
    run(repository, "dvc", "plots", "diff", "HEAD", experiment, "--out", "plots_page")
    page = (repository / "plots_page" / "index.html").read_text()
    assert "Loss by step" in page
    for name in ("recall_eval.png", "differences.png"):
        assert f"data/report/figures/{name}" in page
        assert len(list((repository / "plots_page" / "static").glob(f"*{name}"))) == 2


def finish_queue(project):
    """Wait until no experiment is queued or running; raise what those that failed have said."""
    deadline = time.monotonic() + 400
    while {"Queued", "Running"} & set((status := run(project, "dvc", "queue", "status")).split()):
        assert time.monotonic() < deadline, status
        time.sleep(1)
    run(project, "dvc", "queue", "stop")
    failed = [line.split()[1] for line in status.splitlines() if "Failed" in line]
    assert not failed, "".join(run(project, "dvc", "queue", "logs", name) for name in failed)


def test_two_queued_experiments_at_once_share_a_store_that_was_not_there(repository):
    (repository / "mlflow.db").unlink()
    shutil.rmtree(repository / "mlartifacts")
    for recipe in ("hycd", "rafa"):
        run(repository, "dvc", "exp", "run", "--queue", "-n", recipe, "-S", f"refine.recipe={recipe}")
    run(repository, "dvc", "queue", "start", "-j", "2")
    finish_queue(repository)
    rows = {row.info.run_name: row for row in runs_of(client_of(repository), "pipeline")}
    assert sorted(rows) == ["hycd", "rafa"]
    for name, row in rows.items():
        assert (row.info.status, row.data.tags["dvc.exp_name"]) == ("FINISHED", name)
        assert row.data.params["refine.recipe"] == name
        assert row.data.tags["stage.refine"] == row.data.tags["stage.report"] == "executed"
        assert row.data.tags["stage.base.run_id"] == "unknown"  # made before this store was
    check_artifacts(repository)
    shown = json.loads(run(repository, "dvc", "exp", "show", "--json"))
    assert {e["name"] for branch in shown for e in branch["experiments"] or ()} == {"hycd", "rafa"}


def test_an_experiment_in_a_temporary_folder_logs_to_the_main_store(repository):
    (repository / "mlflow.db").unlink()
    shutil.rmtree(repository / "mlartifacts")
    before = (repository / "params.yaml").read_bytes()
    shutil.rmtree(repository / "data/pixels")
    said = run(repository, "dvc", "exp", "run", "--temp", "-n", "aside", "-S", "refine.recipe=self_kd", "-f")
    assert artifacts.verify(repository / "data/pixels") == []  # the project's, for later experiments too
    assert "has no pixels" not in said
    assert (repository / "params.yaml").read_bytes() == before
    assert executed(rows_by_name(repository)["aside"]) == IN_MLFLOW
    check_artifacts(repository)
    shown = run(repository, sys.executable, "-m", "pipeline_lib.lineage", "show", "--rev", "aside")
    assert shown.startswith("row aside in mlflow.db")
    assert shown.count("executed") == len(ALL)


def test_experiments_from_the_cache_get_their_rows_by_sync(repository):
    """Another store knows nothing of them; with their runs gone too there is nothing to tell, and that is said."""
    run(repository, "dvc", "exp", "run", "--temp", "-n", "first", "-S", "refine.recipe=self_kd")
    made = rows_by_name(repository)["first"].data.tags["stage.refine.run_id"]
    output = run(repository, "dvc", "exp", "run", "--temp", "-n", "again", "-S", "refine.recipe=self_kd")
    assert ran(output) == []  # all from the run-cache: no process, so no row
    assert "again" not in rows_by_name(repository)
    for _ in range(2):
        said = run(repository, sys.executable, "-m", "pipeline_lib.lineage", "sync", "--all-exps")
        assert "again: row again: complete" in said
        assert "first: row first: complete" in said
        rows = rows_by_name(repository)
        assert len(rows) == 3
        assert executed(rows["again"]) == []
        assert rows["again"].data.tags["stage.refine.run_id"] == made
        assert rows["again"].data.metrics == rows["first"].data.metrics
        assert executed(rows["first"]) == ["refine", "evaluate-refined", "report"]
    said = run(repository, sys.executable, "-m", "pipeline_lib.lineage", "show", "--rev", "nowhere", check=False)
    assert said.startswith("error: git rev-parse nowhere")


def test_a_tarball_without_git_runs_and_tracks(baseline, tmp_path):
    archive = tmp_path / "project.tar"
    run(baseline[0], "git", "archive", "--output", str(archive), "HEAD")
    project = tmp_path / "unpacked"
    with tarfile.open(archive) as tar:
        tar.extractall(project, filter="data")
    run(project, "dvc", "config", "--local", "core.no_scm", "true")  # as `make run` does
    lock = (project / "dvc.lock").read_bytes()
    assert sorted(ran(run(project, "dvc", "repro"))) == sorted(ALL)
    assert (project / "dvc.lock").read_bytes() == lock
    ((_, row),) = rows_by_name(project).items()
    assert executed(row) == IN_MLFLOW
    assert "mlflow.source.git.commit" not in row.data.tags
    check_artifacts(project)
    assert run(project, "dvc", "repro").endswith("up to date.\n")


def test_swapping_the_params_file_does_the_same_and_going_back_is_free(repository):
    lock = (repository / "dvc.lock").read_bytes()
    original = (repository / "params.yaml").read_bytes()
    write_params(repository, **TRACKED, refine__recipe="contrastive")
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
    write_params(repository, **TRACKED, **values)
    assert ran(run(repository, "dvc", "repro", "--dry")) == []


def edit(project, *names):
    """Change a file's bytes as a contributor does; of a folder, those of its `__init__`."""
    for name in names:
        path = project / name
        path = path / "__init__.py" if path.is_dir() else path
        path.write_text(path.read_text() + "\n# edited\n")


def stale(repository):
    """The stages that DVC would run first; what follows runs where their outputs then differ."""
    return sorted(ran(run(repository, "dvc", "repro", "--dry")))


def test_an_edit_of_code_that_decides_nothing_reruns_nothing_and_resumes_a_half_finished_epoch(repository):
    """The command line stops an epoch of twelve steps at its first checkpoint; then every such file is edited."""
    edit(repository, *provenance.DECIDES_NOTHING)
    assert stale(repository) == []
    write_params(repository, **TRACKED, refine__epochs=3, runtime__checkpoint_every=1)
    stopped = """
        import signal

        from pipeline_lib.core import runtime
        from pipeline_lib.refine.checkpoint import Checkpoints
        from stages import refine

        save = Checkpoints.save

        def save_and_stop(*given):
            Checkpoints.save = save
            save(*given)
            signal.raise_signal(signal.SIGTERM)

        Checkpoints.save = save_and_stop
        runtime.install_signals()
        refine.main()
    """
    run(repository, sys.executable, "-c", textwrap.dedent(stopped), check=False)
    assert list((repository / ".checkpoints").glob("refine-*/checkpoint.pt"))
    edit(repository, *provenance.DECIDES_NOTHING)
    output = run(repository, "dvc", "repro")
    assert re.search(r"resumed at step \d+", output)
    assert sorted(ran(output)) == ["evaluate@refined", "refine", "report"]


def test_an_option_of_refine_reruns_refine_and_what_follows_and_nothing_before_it(repository):
    """A new option is a field of its settings, a key of params.yaml, and code that reads it."""
    settings, loop = (repository / "pipeline_lib/refine" / name for name in ("settings.py", "loop.py"))
    settings.write_text(settings.read_text() + '\n    warm: bool\n    """Whether it is warm."""\n')
    loop.write_text(loop.read_text() + "\n# reads settings.warm\n")
    params = repository / "params.yaml"
    params.write_text(params.read_text().replace("\nrefine:\n", "\nrefine:\n  warm: true\n"))
    assert stale(repository) == ["refine", "report"]  # whose page shows the parameters
    assert sorted(ran(run(repository, "dvc", "repro"))) == ["evaluate@refined", "refine", "report"]


@pytest.mark.parametrize(
    ("edited", "rerun"),
    [
        ("pipeline_lib/report", ["report"]),
        ("pipeline_lib/evaluate", ["evaluate@base", "evaluate@refined"]),
        ("pipeline_lib/refine", ["refine"]),
        ("pipeline_lib/losses.py", ["base", "cache_teacher", "refine"]),
        ("pipeline_lib/compare", []),
        ("pipeline_lib/export", []),
        ("pipeline_lib/lineage", []),
    ],
)
def test_an_edit_reruns_the_stages_that_name_its_place(repository, edited, rerun):
    edit(repository, edited)
    assert stale(repository) == rerun


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
    shown = run(clone, sys.executable, "-m", "pipeline_lib.lineage", "show", "--rev", "HEAD")
    assert shown.count("not made") == len(ALL)  # no output of that revision is on this machine or in a remote
    output = run(clone, "dvc", "repro")
    assert sorted(ran(output)) == sorted(ALL)
    assert run(clone, "git", "status", "--short") == ""
    ((_, row),) = rows_by_name(clone).items()
    assert executed(row) == IN_MLFLOW
    assert row.data.tags["mlflow.source.git.commit"] == run(clone, "git", "rev-parse", "HEAD").strip()
    check_artifacts(clone)


def test_a_failed_stage_fails_dvc_and_leaves_nothing_half_written(repository):
    write_params(repository, **TRACKED, refine__learning_rate=1e30)
    output = run(repository, "dvc", "repro", check=False)
    assert "ERROR: failed to reproduce 'refine'" in output
    assert "the loss is not finite at step" in output
    assert not (repository / "data/refined").exists()


@pytest.fixture(scope="module")
def pushed(baseline, tmp_path_factory):
    """The baseline with a remote, to which it pushed its own results and those of another recipe.

    `--run-cache` pushes which run gave which outputs, for all runs, but only the outputs that params.yaml stands for.
    """
    folder = tmp_path_factory.mktemp("pushed")
    source = shutil.copytree(baseline[0], folder / "source", symlinks=True)
    run(source, "dvc", "remote", "add", "-d", "store", str(folder / "store"))
    run(source, "git", "commit", "-qam", "remote")
    original = (source / "params.yaml").read_bytes()
    write_params(source, **TRACKED, refine__recipe="self_kd")
    assert sorted(ran(run(source, "dvc", "repro"))) == ["evaluate@refined", "refine", "report"]
    run(source, "dvc", "push", "--run-cache")
    (source / "params.yaml").write_bytes(original)
    assert ran(run(source, "dvc", "repro")) == []
    run(source, "dvc", "push", "--run-cache")
    assert run(source, "git", "status", "--short") == ""
    return source


def clone_of(source, folder):
    run(folder, "git", "clone", "-q", str(source), str(folder / "clone"))
    return folder / "clone"


def test_a_clone_that_pulled_runs_nothing_and_an_experiment_its_own_stages_only(pushed, tmp_path):
    """No flag and no error; the pixels stayed behind, and `refine` does without them and says how to have them."""
    clone = clone_of(pushed, tmp_path)
    run(clone, "dvc", "pull")
    assert not (clone / "data/pixels").exists()
    assert run(clone, "dvc", "status").strip() == "Data and pipelines are up to date."
    assert ran(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""
    output = run(clone, "dvc", "exp", "run", "-S", "refine.recipe=hycd")
    assert sorted(ran(output)) == ["evaluate@refined", "refine", "report"]
    assert "`python -m stages.cache_teacher pixels` stores them" in output
    run(clone, sys.executable, "-m", "stages.cache_teacher", "pixels")
    assert run(clone, sys.executable, "-m", "pipeline_lib.lineage", "check").endswith("agree with their manifests\n")
    assert "data/pixels" not in run(clone, "git", "status", "--short", "--untracked-files=all")


def test_a_clone_that_pulled_nothing_fetches_what_an_experiment_needs(pushed, tmp_path):
    clone = clone_of(pushed, tmp_path)
    output = run(clone, "dvc", "exp", "run", "--pull", "--allow-missing", "-S", "refine.recipe=hycd")
    assert sorted(ran(output)) == ["evaluate@refined", "refine", "report"]


def test_a_clone_that_pulled_the_run_cache_trains_nothing_that_another_has_trained(pushed, tmp_path):
    """The page alone is written again: its numbers are in git, and of such a stage DVC keeps no run."""
    clone = clone_of(pushed, tmp_path)
    run(clone, "dvc", "pull", "--run-cache")
    assert ran(run(clone, "dvc", "repro")) == []
    lock = (clone / "dvc.lock").read_bytes()
    write_params(clone, **TRACKED, refine__recipe="self_kd")
    assert ran(run(clone, "dvc", "repro", "--pull")) == ["report"]
    assert "self_kd_loss" in (clone / "data/refined/history.jsonl").read_text()
    assert (clone / "dvc.lock").read_bytes() != lock
