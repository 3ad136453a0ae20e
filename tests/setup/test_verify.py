"""`clip-refine check` says every mistake at once, those in the data too, and counts what parts hold."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline_lib.core.errors import UserError
from pipeline_lib.setup import verify
from tests.tiny_project import make_project

ROOT = Path(__file__).parents[2]


def broken(project, **changed):
    """The tiny project's params.yaml with some keys replaced; None deletes one."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for dotted, value in changed.items():
        section, key = dotted.split("__")
        params[section].pop(key, None)
        if value is not None:
            params[section][key] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = make_project(tmp_path / "project", num_samples=40)
    monkeypatch.chdir(made)
    return made


def test_a_project_in_order_is_counted(project, capsys):
    verify.main([])
    lines = capsys.readouterr().out.splitlines()
    counted = {line.split(":")[0]: line.split(":")[1] for line in lines if line.startswith("part ")}
    images = {part: int(text.split()[0]) for part, text in counted.items()}
    assert images.keys() == {"part refine", "part val", "part eval"}
    assert sum(images.values()) == 40  # shares add up to 1
    assert lines[-1] == "params.yaml: nothing to mend; `dvc repro` runs it"


def test_every_mistake_is_said_at_once(project, capsys):
    broken(
        project, refine__seeds=3, refine__epochs=0, refine__recipe="hycdd", evaluate__prompt="a photo", base__path="no"
    )
    with pytest.raises(UserError, match=r"^params.yaml: 5 to mend$"):
        verify.main([])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    starts = (
        "refine.seeds: unknown key; did you mean `seed`?",
        "refine.epochs: 0 is out of range",
        "evaluate.prompt: 'a photo' must hold {} once",
        "base.path: no does not exist",
        "refine.recipe: unknown recipe `hycdd`; did you mean `hycd`?",
    )
    assert len(said) == len(starts)
    assert all(line.startswith(f"- params.yaml: {start}") for line, start in zip(said, starts, strict=True))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"data__parts": {"refine": 0.8, "val": 0.4, "eval": 0.4}}, "data.parts: the shares add up to 1.6"),
        ({"data__root": "elsewhere"}, "data.root: elsewhere does not exist"),
        ({"refine__batch_size": 64}, "params.yaml: refine.batch_size: 64, but part `refine` has "),
        ({"data__parts": {"refine": 0.999, "val": 0.0005, "eval": 0.0005}}, "params.yaml: data.parts.val: holds no"),
        ({"recipes__clip_refine": {}}, "params.yaml: recipes.clip_refine.rafa_weight: missing"),
    ],
)
def test_mistakes_that_a_later_stage_would_find(project, capsys, changed, sentence):
    broken(project, **changed)
    with pytest.raises(UserError, match=r"to mend$"):
        verify.main([])
    assert f"- {sentence}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("\ndata:", "\ndat:", "unknown section `dat`; did you mean `data`?"),
        ("  root: data/openmoji", "  rot: data/openmoji", "data.rot: unknown key; did you mean `root`?"),
        ("    rafa_weight: 1.0", "    rafa_wight: 1.0", "recipes.clip_refine.rafa_wight: unknown key; known: rafa_w"),
        ("recipes:", "recipes: {}\nx:", "unknown section `x`"),
    ],
)
def test_a_misspelt_name_is_said_once_and_make_run_asks_before_dvc(tmp_path, capsys, old, new, sentence):
    """DVC looks into params.yaml before it starts any stage, and says only that it could not find a key."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=r"to mend$"):
        verify.main(["--no-data", "--params", str(path)])
    assert capsys.readouterr().out.count(sentence) == 1
    run = (ROOT / "Makefile").read_text().split("\nrun:")[1].split("\n\n")[0]
    assert run.index("pipeline_lib check") < run.index("dvc repro")


def test_what_needs_no_data_is_said_before_torch_is_loaded(project):
    """Half of the time of a short command would be torch's."""
    broken(project, refine__epochs=0)
    script = (
        "import sys, pipeline_lib.setup.verify as v\n"
        "v._data = lambda *_: sys.exit(f'torch: {\"torch\" in sys.modules}')\n"
        "v.main([])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert "refine.epochs: 0 is out of range" in ended.stdout
    assert ended.stderr.strip() == "torch: False"
