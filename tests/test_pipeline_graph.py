"""dvc.yaml against the code: DVC traces neither imports nor parameters, so these lists must be proved true."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pipeline_lib.core import config, provenance
from pipeline_lib.core.paths import LANGUAGE
from pipeline_lib.core.paths import STAGES as ALWAYS
from pipeline_lib.params.sections import SECTIONS

ROOT = Path(__file__).parents[1]
STAGES = (*ALWAYS[:2], LANGUAGE, *ALWAYS[2:])  # with the one that is there where it is asked for
FREE = {"paths", "runtime", "tracking"}  # where and how, not what: in no stage's params


def graph():
    return config.parse_yaml((ROOT / "dvc.yaml").read_text(), "dvc.yaml")


def stage(name):
    found = graph()["stages"][name]
    return {**found, **found.get("do", {})}


def code_deps(name):
    return [Path(dep) for dep in stage(name)["deps"] if dep.startswith(("stages/", "pipeline_lib/"))]


def test_stages_scripts_sections_packages_and_folders_share_their_names():
    assert tuple(graph()["stages"]) == STAGES
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)
    for name in STAGES:
        assert name in SECTIONS
        assert SECTIONS[name].__module__ == f"pipeline_lib.{name}.settings"
        assert callable(import_module(f"pipeline_lib.{name}.run").run)
        assert re.fullmatch(rf"python -m stages\.{name}( \$\{{key\}})?", stage(name)["cmd"])
        assert stage(name)["desc"]


def test_the_graph_is_a_page():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 150


@pytest.mark.parametrize("name", STAGES)
def test_every_file_that_a_stage_imports_lies_below_a_dep_and_no_dep_is_idle(name):
    """What decides nothing is not in the closure: see `provenance.DECIDES_NOTHING`."""
    closure, deps = provenance.import_closure(Path(f"stages/{name}.py"), ROOT), code_deps(name)
    assert [path for path in closure if not any(path.is_relative_to(dep) for dep in deps)] == []
    assert [dep for dep in deps if not any(path.is_relative_to(dep) for path in closure)] == []


@pytest.mark.parametrize("name", STAGES)
def test_what_decides_nothing_is_there_and_in_no_dep(name):
    for idle in provenance.DECIDES_NOTHING:
        assert (ROOT / idle).exists()
        assert not any(Path(idle).is_relative_to(dep) or dep.is_relative_to(idle) for dep in code_deps(name))


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_the_stage_loads(name):
    """`SECTIONS` is compared with what is really read in tests/test_stages.py."""
    sections = import_module(f"stages.{name}").SECTIONS
    expected = sorted(s if s != "recipes" else "recipes.${refine.recipe}" for s in set(sections) - FREE)
    assert sorted(stage(name).get("params", [])) == expected


def test_nothing_persists_and_small_files_are_metrics_or_plots():
    """`persist: true` resumes the wrong experiment; `cache: false` under outs switches the run-cache off."""
    for name in STAGES:
        for out in stage(name).get("outs", []):
            options = next(iter(out.values())) if isinstance(out, dict) else {}
            assert not {"persist", "cache"} & set(options), name
        assert not stage(name).get("always_changed")


def test_each_path_is_typed_once():
    """dvc.yaml takes every data path from `paths:` or `data:` of params.yaml."""
    text = (ROOT / "dvc.yaml").read_text()
    assert not re.findall(r"(?<![\w{.])data/(?:base|shards|teacher|pixels|refined|eval|report)", text)


def test_make_clean_removes_what_git_ignores_under_data():
    recipe = (ROOT / "Makefile").read_text().split("\nclean:")[1]
    ignored = re.findall(r"^/(data/\S+)$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    assert {*config.raw_section(ROOT / "params.yaml", "paths").values()} < {*ignored}
    assert {*re.findall(r"data/\S+", recipe)} == {*ignored}


@pytest.mark.parametrize(("asked", "names"), [({}, []), ({"make": {}}, ["language@make"])])
def test_the_stage_of_a_language_model_is_there_where_it_is_asked_for(tmp_path, asked, names):
    """`dvc stage list`, with the project's own dvc.yaml and params.yaml."""
    params = config.read_params(ROOT / "params.yaml")
    params["language"]["stages"] = asked
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for command in ("init --no-scm", "stage list --name-only"):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command.split()], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    listed = done.stdout.split()
    assert [name for name in listed if LANGUAGE in name] == names
    assert len(listed) == 7 + len(names)


def test_closure_follows_imports_inside_functions(tmp_path):
    for name, body in {
        "stages/a.py": "def f():\n    from pipeline_lib import b, terminal\n",
        "stages/__init__.py": "",
        "pipeline_lib/b.py": "import pipeline_lib.c\nimport os\n",
        "pipeline_lib/c.py": "from pipeline_lib.b import x\n",
        "pipeline_lib/d.py": "",
        "pipeline_lib/__init__.py": "",
        "pipeline_lib/terminal.py": "from pipeline_lib import d\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    found = [p.as_posix() for p in provenance.import_closure(Path("stages/a.py"), tmp_path)]
    assert found == [
        "pipeline_lib/b.py",
        "pipeline_lib/c.py",
        "stages/a.py",
    ]
    before = provenance.code_digest(Path("stages/a.py"), tmp_path)
    for idle in ("pipeline_lib/d.py", "pipeline_lib/terminal.py", "stages/__init__.py"):
        (tmp_path / idle).write_text("x = 1")
    assert provenance.code_digest(Path("stages/a.py"), tmp_path) == before
    (tmp_path / "pipeline_lib/c.py").write_text("x = 1")
    assert provenance.code_digest(Path("stages/a.py"), tmp_path) != before
