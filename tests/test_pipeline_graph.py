"""dvc.yaml against the code: DVC traces neither imports nor parameters, so these lists must be proved true."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline_lib.core import config, provenance, yaml12

ROOT = Path(__file__).parents[1]
STAGES = ("base", "shard", "cache_teacher", "refine", "evaluate", "report")
FREE = {"paths", "runtime", "tracking"}  # where and how, not what: in no stage's params


def graph():
    return yaml.load((ROOT / "dvc.yaml").read_text(), yaml12.Yaml12Loader)


def stage(name):
    found = graph()["stages"][name]
    return {**found, **found.get("do", {})}


def test_stages_scripts_sections_and_folders_share_their_names():
    assert tuple(graph()["stages"]) == STAGES
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)
    for name in STAGES:
        assert name in config.SECTIONS
        assert re.fullmatch(rf"python -m stages\.{name}( \$\{{key\}})?", stage(name)["cmd"])
        assert stage(name)["desc"]


@pytest.mark.parametrize("name", STAGES)
def test_code_deps_are_the_import_closure(name):
    """Remedy when this fails: `python -m pipeline_lib.core.provenance` prints the lists."""
    listed = [dep for dep in stage(name)["deps"] if dep.endswith(".py")]
    assert listed == [path.as_posix() for path in provenance.import_closure(Path(f"stages/{name}.py"), ROOT)]


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


@pytest.mark.parametrize("path", ["dvc.lock", "dvc.yaml", "params.yaml"])
def test_dvc_reads_its_files_with_the_parser_in_c_and_reads_the_same(path):
    """In Python, reading dvc.lock twice is nearly half of a `dvc repro` with nothing to do."""
    text = (ROOT / path).read_text(encoding="utf-8")
    in_c, in_python = YAML(typ="safe"), YAML(typ="safe", pure=True)
    assert in_c.Parser is not in_python.Parser
    assert repr(in_c.load(text)) == repr(in_python.load(text)) != "None"


def test_each_path_is_typed_once():
    """dvc.yaml takes every data path from `paths:` or `data:` of params.yaml."""
    text = (ROOT / "dvc.yaml").read_text()
    assert not re.findall(r"(?<![\w{.])data/(?:base|shards|teacher|pixels|refined|eval|report)", text)


def test_make_clean_removes_what_git_ignores_under_data():
    recipe = (ROOT / "Makefile").read_text().split("\nclean:")[1]
    ignored = re.findall(r"^/(data/\S+)$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    assert {*config.raw_section(ROOT / "params.yaml", "paths").values()} < {*ignored}
    assert {*re.findall(r"data/\S+", recipe)} == {*ignored}


def test_closure_follows_imports_inside_functions(tmp_path):
    for name, body in {
        "stages/a.py": "def f():\n    from pipeline_lib import b\n",
        "stages/__init__.py": "",
        "pipeline_lib/b.py": "import pipeline_lib.c\nimport os\n",
        "pipeline_lib/c.py": "from pipeline_lib.b import x\n",
        "pipeline_lib/d.py": "",
        "pipeline_lib/__init__.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    found = [p.as_posix() for p in provenance.import_closure(Path("stages/a.py"), tmp_path)]
    assert found == ["pipeline_lib/__init__.py", "pipeline_lib/b.py", "pipeline_lib/c.py", "stages/__init__.py", "stages/a.py"]  # noqa: E501  # fmt: skip
    before = provenance.code_digest(Path("stages/a.py"), tmp_path)
    (tmp_path / "pipeline_lib/d.py").write_text("x = 1")
    assert provenance.code_digest(Path("stages/a.py"), tmp_path) == before
    (tmp_path / "pipeline_lib/c.py").write_text("x = 1")
    assert provenance.code_digest(Path("stages/a.py"), tmp_path) != before


def _flat(value, prefix=""):
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".strip(".")).items()}


@pytest.mark.parametrize("path", sorted((ROOT / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_ablation_differs_only_in_the_keys_its_first_comment_names(path):
    base, other = (_flat(config.read_params(p)) for p in (ROOT / "params.yaml", path))
    differing = {key for key in {*base, *other} if base.get(key, "absent") != other.get(key, "absent")}
    first = path.read_text().splitlines()[0]
    assert first.startswith("# Differs from params.yaml in: ")
    named = [key.strip() for key in first.removeprefix("# Differs from params.yaml in: ").split(",")]
    unnamed = {key for key in differing if not any(key == n or key.startswith(n + ".") for n in named)}
    idle = [n for n in named if not any(key == n or key.startswith(n + ".") for key in differing)]
    assert (unnamed, idle) == (set(), [])
    for name in config.SECTIONS:
        config.load(path, name)


def test_there_is_an_ablation_for_every_recipe():
    chosen = {config.load(p, "refine").recipe for p in (ROOT / "ablations").glob("*.yaml")}
    assert chosen | {"clip_refine"} >= set(config.raw_section(ROOT / "params.yaml", "recipes"))
