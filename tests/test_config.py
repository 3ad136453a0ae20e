"""params.yaml is read strictly: YAML 1.2 numbers, and every mistake named by file, dotted path and remedy."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline_lib import config
from pipeline_lib.errors import UserError

ROOT = Path(__file__).parents[1]


def params_with(tmp_path, *changes):
    """The project's params.yaml with textual replacements, each of which must hit exactly once."""
    text = (ROOT / "params.yaml").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(config.SECTIONS))
def test_the_projects_own_params_load(name):
    assert isinstance(config.load(ROOT / "params.yaml", name), config.SECTIONS[name])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5e-07", 5e-7),
        ("1.0e-6", 1e-6),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("12", 12),
        ("0o17", 15),
        ("017", 17),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("null", None),
        ("~", None),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path, text, value):
    """What DVC's reader (YAML 1.2) makes of a scalar; PyYAML's own loader differs on several of these."""
    path = tmp_path / "params.yaml"
    path.write_text(f"recipes: {{x: {text}}}\n")
    found = config.read_params(path)["recipes"]["x"]
    assert found == value
    assert type(found) is type(value)


def test_pyyaml_alone_would_read_a_string():
    assert yaml.safe_load("x: 1e-6") == {"x": "1e-6"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  learning_rate: 5e-5 #", "  learning_rat: 5e-5 #", "refine.learning_rat: unknown key; did you mean `learning_rate`?"),  # noqa: E501
        ("  learning_rate: 5e-5 #", '  learning_rate: "5e-5" #', "refine.learning_rate: expected a number, found str '5e-5'"),  # noqa: E501
        ("  recipe: clip_refine\n", "", "refine.recipe: missing; add it (text)"),
        ("  schedule: constant", "  schedule: cosin", "refine.schedule: str 'cosin' is not one of constant, cosine; did you mean `cosine`?"),  # noqa: E501
        ("  lock_text: false", "  lock_text: 0", "refine.lock_text: expected true or false, found int 0"),
        ("  epochs: 1\n", "  epochs: true\n", "refine.epochs: expected a whole number, found bool True"),
        ("  epochs: 1\n", "  epochs: 1.5\n", "refine.epochs: expected a whole number, found float 1.5"),
        ("  betas: [0.9, 0.999]", "  betas: [0.9]", "refine.betas: expected a list of a number, found a list"),
        ("  grad_clip: null", "  grad_clip: big", "refine.grad_clip: expected a number, found str 'big'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_path(tmp_path, old, new, message):
    path = params_with(tmp_path, (old, new))
    with pytest.raises(UserError, match=re.escape(f"{path}: {message}")):
        config.load(path, "refine")


def test_nested_blocks_and_mappings_are_strict(tmp_path):
    path = params_with(tmp_path, ("  evaluation: {} #", "  evaluation: {cifar: {format: clip_benchmark, pat: x}} #"))
    with pytest.raises(UserError, match=r"data.evaluation.cifar.pat: unknown key; did you mean `path`\?"):
        config.load(path, "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refin: {}\n", "unknown section `refin`; did you mean `refine`?"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "expected sections"),
        ("recipes: {a: 1, a: 2}\n", "key `a` stands twice"),
        ("recipes: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_broken_files(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        config.read_params(path)


def test_missing_file_and_section(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file.*--params"):
        config.read_params(tmp_path / "nowhere.yaml")
    path = tmp_path / "params.yaml"
    path.write_text("recipes: {}\n")
    with pytest.raises(UserError, match="section `refine` is missing"):
        config.load(path, "refine")
