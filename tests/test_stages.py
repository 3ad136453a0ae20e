"""All six stages in a row on a tiny project: they work, say what they read, and give the same bytes again."""

import importlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts, config, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.params import check
from tests.conftest import run_stage
from tests.language.asked import ASKED
from tests.tiny_model import write_tiny_clip, write_tiny_language
from tests.tiny_project import ROOT, STAGES, make_project, write_params

FOLDERS = ("base", "shards", "teacher", "pixels", "refined", "eval/base", "eval/refined", "report")


def run_recorded(name, project):
    """Run a stage; return the sections that it read but for those of `check_params`, which decides no result."""
    sections = set()
    original, check_params = config.raw_section, check.check_params

    def recording(params_file, section):
        sections.add(section)
        return original(params_file, section)

    def unrecorded(params_file):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(config, "raw_section", original)
            check_params(params_file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "raw_section", recording)
        patch.setattr(check, "check_params", unrecorded)
        run_stage(name, project)
    return sections


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project in which all stages ran, with the sections each of them read."""
    project = make_project(tmp_path_factory.mktemp("whole") / "project", evaluate__wise_ft=[0.5])
    return project, {name: run_recorded(name, project) for name in STAGES}


@pytest.fixture(scope="module")
def optional(tmp_path_factory):
    """The sections that the optional stage read."""
    project = make_project(tmp_path_factory.mktemp("optional") / "project", num_samples=48, **ASKED)
    write_tiny_language(project / "llama")
    for name in ("base", "shard"):
        run_stage(name, project)
    return run_recorded("language", project)


def digests(project):
    return {name: artifacts.read_manifest(project / "data" / name)["digest"] for name in FOLDERS}


@pytest.mark.parametrize("name", [*STAGES, "language"])
def test_a_stage_reads_the_sections_it_declares(name, request):
    """With tests/test_pipeline_graph.py: a stage that read an undeclared parameter would leave stale results."""
    declared = set(importlib.import_module(f"stages.{name}").SECTIONS)
    read = request.getfixturevalue("optional") if name == "language" else request.getfixturevalue("whole")[1][name]
    assert read <= declared
    assert declared - read <= {"tracking"}  # read by tracking itself where it is switched on


def test_every_output_is_whole_and_self_described(whole):
    project, _ = whole
    for name in FOLDERS:
        assert artifacts.verify(project / "data" / name) == []
    assert not list((project / ".checkpoints").iterdir())
    assert list((project / "data").rglob(".*")) == []


def test_no_output_holds_a_path_a_host_or_a_date(whole):
    project, _ = whole
    texts = [
        p for p in (project / "data").rglob("*") if p.suffix in (".json", ".jsonl", ".md", ".html", ".txt", ".svg")
    ]
    assert len(texts) > 15
    for path in texts:
        content = re.sub(r"data:[a-z/+;0-9]*,[^\"')]+", "", path.read_text())  # inlined images
        assert str(project) not in content, path
        assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", content), path
        assert not re.search(r"\b20\d\d-\d\d-\d\dT|\d\d:\d\d:\d\d", content), path


def test_no_output_is_a_pickle(whole):
    for path in (whole[0] / "data").rglob("*"):
        assert path.suffix not in (".pt", ".pth", ".pkl", ".bin", ".ckpt"), path
        if path.is_file():
            assert path.read_bytes()[:2] != b"\x80\x04", path


def test_metrics_are_flat_numbers(whole):
    for name in ("base", "refined"):
        metrics = json.loads((whole[0] / f"data/eval/{name}.json").read_text())
        assert {"eval", "val"} <= set(metrics)
        for values in metrics.values():
            assert "@" not in "".join(values)
            assert all(isinstance(value, float | int) for value in values.values())


def test_a_second_project_gives_the_same_bytes(whole, tmp_path):
    """Another folder, another day: every digest is equal."""
    project = make_project(tmp_path / "elsewhere", evaluate__wise_ft=[0.5])
    for name in STAGES:
        run_stage(name, project)
    assert digests(project) == digests(whole[0])


def test_the_refined_model_is_never_replaced_by_the_base(whole, tmp_path):
    """Evaluation without a refined model is an error, not a silent evaluation of the base."""
    project = shutil.copytree(whole[0], tmp_path / "project")
    shutil.rmtree(project / "data/refined")
    with pytest.raises(UserError, match=r"data/refined/manifest.json: no such file"):
        run_stage("evaluate", project, "refined")


def test_a_refined_model_is_refined_once_more_on_the_same_images(whole, tmp_path):
    """They are listed once; the evaluated parts stay as they were."""
    project, _ = whole
    shutil.copytree(project, tmp_path / "again")
    again = tmp_path / "again"
    (again / "data/refined").rename(again / "once")
    write_params(again, base__path="once")
    for name in ("base", "shard", "cache_teacher", "refine"):
        run_stage(name, again)
    lists = [(folder / "data/refined" / artifacts.TRAINED_ON).read_text() for folder in (project, again)]
    assert lists[0] == lists[1]
    parts = [artifacts.read_manifest(folder / "data/shards")["parts"] for folder in (project, again)]
    assert parts[0] == parts[1]
    weights = [artifacts.read_manifest(folder / "data/refined")["model"] for folder in (project, again)]
    assert weights[1]["refined_from"] == weights[0]["weights_digest"] != weights[1]["weights_digest"]


def test_the_result_differs_from_the_base(whole):
    results = [json.loads((whole[0] / f"data/eval/{m}/results.json").read_text()) for m in ("base", "refined")]
    assert results[0]["weights_digest"] != results[1]["weights_digest"]


MISTAKES = [
    ("base", {"base__path": "nowhere"}, "nowhere"),
    ("base", {"evaluate__selection": "vall"}, "evaluate.selection: there is no part or set `vall`"),
    ("refine", {"report__num_examples": "few"}, "report.num_examples: expected a whole number"),
    ("shard", {"data__annotations": "missing.jsonl"}, "missing.jsonl"),
    ("refine", {"refine__recipe": "clip_refin"}, "unknown recipe `clip_refin`; did you mean `clip_refine`?"),
    ("refine", {"refine__batch_size": "many"}, "refine.batch_size: expected a whole number"),
    ("evaluate", {"runtime__device": "cuda:77"}, "runtime.device: `cuda:77` is not usable here"),
]


def command(stage, monkeypatch, *arguments):
    """`python -m stages.<stage> ...` inside this process; returns the exit code."""
    monkeypatch.setattr(runtime, "install_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", [f"stages.{stage}", *arguments])
    monkeypatch.delitem(sys.modules, f"stages.{stage}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(("stage", "values", "message"), MISTAKES)
def test_a_mistake_is_one_line_exit_1_and_changes_nothing(whole, tmp_path, monkeypatch, capsys, stage, values, message):
    project = shutil.copytree(whole[0], tmp_path / "project")
    before = digests(project)
    write_params(project, **values)
    monkeypatch.chdir(project)
    assert command(stage, monkeypatch) == 1
    captured = capsys.readouterr().err
    errors = [line for line in captured.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in captured
    assert digests(project) == before


SIGNALLED = """
import os, runpy, signal
from {module} import {name} as original
import {module} as module
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments)
module.{name} = signalled
runpy.run_module("stages.{stage}", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("stage", "module", "name"),
    [("base", "pipeline_lib.model", "save"), ("report", "pipeline_lib.report.drawings", "draw_figures")],
)
def test_sigterm_in_a_stage_without_checkpoints_is_one_line_and_leaves_nothing(whole, tmp_path, stage, module, name):
    """The signal comes while it writes weights, or draws. Those of the other stages are tested with them."""
    project = shutil.copytree(whole[0], tmp_path / "project")
    for output in (project / "data").glob(f"{stage}*"):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    code = SIGNALLED.format(stage=stage, module=module, name=name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(r".* signal SIGTERM: stopping at the next step .*\n", done.stderr)
    assert not done.stdout
    assert not list((project / "data").glob(f"*{stage}*"))


@pytest.mark.parametrize("name", STAGES)
def test_help_says_what_a_stage_reads_and_writes(name, monkeypatch, capsys):
    assert command(name, monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert "data/" in shown or "paths." in shown
    assert shown.startswith(f"usage: python -m stages.{name} [-h] [--params PARAMS]")
    assert name != "refine" or ("history.jsonl" in shown and "history.csv" in shown)
    assert "--params" in shown


def test_quick_gelu_stays_from_base_to_the_loaded_result(tmp_path):
    """An OpenAI-style model: base, refined folder and plain open_clip agree on the activation, and it matters."""
    project = make_project(tmp_path / "project", model=write_tiny_clip(tmp_path / "quick", quick_gelu=True))
    for name in ("base", "shard", "cache_teacher", "refine"):
        run_stage(name, project)
    for folder in ("base", "refined"):
        assert artifacts.read_manifest(project / "data" / folder)["model"]["quick_gelu"] is True
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{project / 'data/refined'}")
    activations = {type(m).__name__ for m in plain.modules() if "GELU" in type(m).__name__}
    assert activations == {"QuickGELU"}
    path = project / "data/refined/open_clip_config.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    with pytest.raises(UserError, match="quick_gelu"):
        model.load(project / "data/refined")


@pytest.mark.slow
def test_a_vit_b_32_checkpoint_runs_through_all_stages(tmp_path):
    """The path of a GPU's user at a CPU's size: a local .pt checkpoint of a real architecture, two dozen images."""
    module = open_clip.create_model("ViT-B-32")
    checkpoint = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, checkpoint)
    project = make_project(
        tmp_path / "project",
        num_samples=48,
        base__source="checkpoint",
        base__model="ViT-B-32",
        base__path=str(checkpoint),
        refine__learning_rate=1e-5,
        runtime__num_threads=None,
    )
    for name in STAGES:
        run_stage(name, project)
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{project / 'data/refined'}")
    assert plain.visual.image_size in (224, (224, 224))
    rows = (project / "data/refined/history.jsonl").read_text().splitlines()
    assert len(rows) >= 2
    assert (project / "data/report/report.html").is_file()


def test_stages_are_thin():
    for name in STAGES:
        assert len((ROOT / "stages" / f"{name}.py").read_text().splitlines()) <= 60


def test_there_is_no_wide_except():
    """Exceptions propagate; the few places that translate one say so by type."""
    for path in [*Path(ROOT / "pipeline_lib").rglob("*.py"), *Path(ROOT / "stages").glob("*.py")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.match(r"\s*except\s*:", line), f"{path}:{number}"


@pytest.mark.parametrize("stage", ["base", "shard", "cache_teacher", "evaluate"])
def test_a_disk_without_room_is_refused_before_the_work(cached, monkeypatch, stage):
    """That of `refine` is tested with it; `base` keeps nothing across a kill, and so builds beside its output."""
    usage = shutil.disk_usage(cached)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    folder = {"shard": "shards", "cache_teacher": "teacher", "evaluate": "eval"}.get(stage, stage)
    shutil.rmtree(cached / "data" / folder, ignore_errors=True)
    place = "data" if stage == "base" else rf"\.checkpoints/{stage}-\w+"
    with pytest.raises(UserError, match=rf"^{place}: 0\.\d+ GB will be needed there, 0\.00 are free"):
        run_stage(stage, cached)
    assert not (cached / "data" / folder).exists()
    assert not list((cached / "data").glob(".*"))
