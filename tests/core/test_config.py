"""params.yaml is read strictly: YAML 1.2 numbers, and every mistake named by file, dotted path and remedy."""

import ast
import re
import typing
from pathlib import Path

import pytest

from pipeline_lib.base.settings import DemoSettings
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.sections import SECTIONS
from pipeline_lib.refine import recipes
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.report.settings import ReportSettings
from pipeline_lib.sources.settings import DataSettings, EvaluationSet

ROOT = Path(__file__).parents[2]


def params_with(tmp_path, *changes):
    """The project's params.yaml with textual replacements, each of which must hit exactly once."""
    text = (ROOT / "params.yaml").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_projects_own_params_load(name):
    assert isinstance(config.load(ROOT / "params.yaml", SECTIONS[name]), SECTIONS[name])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  learning_rate: 5e-5 #", "  learning_rat: 5e-5 #", "refine.learning_rat: unknown key; did you mean `learning_rate`?"),  # noqa: E501
        ("  learning_rate: 5e-5 #", '  learning_rate: "5e-5" #', "refine.learning_rate: expected a number, found str '5e-5'"),  # noqa: E501
        ("  recipe: clip_refine\n", "", "refine.recipe: missing; add it (text)"),
        ("  schedule: constant", "  schedule: cosin", "refine.schedule: str 'cosin' is not one of constant, cosine; did you mean `cosine`?"),  # noqa: E501
        ("  schedule: constant", "  schedule: stairs", "refine.schedule: str 'stairs' is not one of constant, cosine"),
        ("  lock_text: false", "  lock_text: 0", "refine.lock_text: expected true or false, found int 0"),
        ("  epochs: 1\n", "  epochs: true\n", "refine.epochs: expected a whole number, found bool True"),
        ("  epochs: 1\n", "  epochs: 1.5\n", "refine.epochs: expected a whole number, found float 1.5"),
        ("  betas: [0.9, 0.999]", "  betas: [0.9]", "refine.betas: expected 2 numbers, found 1"),
        ("  betas: [0.9, 0.999]", "  betas: 0.9", "refine.betas: expected a list of 2 numbers, found float 0.9"),
        ("  betas: [0.9, 0.999]", "  betas: [0.9, x]", "refine.betas[1]: expected a number, found str 'x'"),
        ("  grad_clip: null", "  grad_clip: big", "refine.grad_clip: expected a number or null, found str 'big'"),
        ("  grad_clip: null", "  grad_clip: 0.0", "refine.grad_clip: 0.0 is out of range: a number, above 0"),
        ("  micro_batch: null", "  micro_batch: 0", "refine.micro_batch: 0 is out of range: a whole number, at least 1"),  # noqa: E501
        ("  epochs: 1\n", "  epochs: 0\n", "refine.epochs: 0 is out of range: a whole number, at least 1"),
        ("  max_steps: null", "  max_steps: 0", "refine.max_steps: 0 is out of range: a whole number, at least 1"),
        ("  learning_rate: 5e-5 #", "  learning_rate: .nan #", "refine.learning_rate: nan is out of range: a number, at least 0"),  # noqa: E501
        ("  learning_rate: 5e-5 #", "  learning_rate: .inf #", "refine.learning_rate: inf is out of range: a number, at least 0"),  # noqa: E501
        ("  betas: [0.9, 0.999]", "  betas: [0.9, 1.0]", "refine.betas[1]: 1.0 is out of range: a number, at least 0 and below 1"),  # noqa: E501
    ],
)  # fmt: skip
def test_mistakes_are_named_by_path(tmp_path, old, new, message):
    path = params_with(tmp_path, (old, new))
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}$"):
        config.load(path, RefineSettings)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  checkpoint_every: 50", "  checkpoint_every: 0", "runtime.checkpoint_every: 0 is out of range: a whole number, at least 1"),  # noqa: E501
        ("  confidence: 0.95", "  confidence: 95", "evaluate.confidence: 95 is out of range: a number, above 0 and below 1"),  # noqa: E501
        ("  bootstrap_samples: 1000", "  bootstrap_samples: 0", "evaluate.bootstrap_samples: 0 is out of range: a whole number, at least 1"),  # noqa: E501
        ("  recall_at: [1, 5, 10]", "  recall_at: [1, 0]", "evaluate.recall_at[1]: 0 is out of range: a whole number, at least 1"),  # noqa: E501
        ("  chunk_size: 64", "  chunk_size: 0", "cache_teacher.chunk_size: 0 is out of range: a whole number, at least 8 and a multiple of 8"),  # noqa: E501
        ("  chunk_size: 64", "  chunk_size: 100", "cache_teacher.chunk_size: 100 is out of range: a whole number, at least 8 and a multiple of 8"),  # noqa: E501
        ("  verify_share: 0.02", "  verify_share: 2", "cache_teacher.verify_share: 2 is out of range: a number, at least 0 and at most 1"),  # noqa: E501
        ("  verify_tolerance: null", "  verify_tolerance: -1", "cache_teacher.verify_tolerance: -1 is out of range: a number, at least 0"),  # noqa: E501
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named_by_path(tmp_path, old, new, message):
    path = params_with(tmp_path, (old, new))
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}$"):
        config.load(path, SECTIONS[message.split(".")[0]])


def test_every_number_has_a_range_or_none_by_choice():
    """A seed may be any whole number; the rest must say what they take."""
    free = set()
    for kind in {*SECTIONS.values(), DemoSettings, EvaluationSet, recipes.Prior}:
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if {int, float} & {hint, *typing.get_args(hint)} and typing.get_origin(hint) is not typing.Annotated:
                free.add(f"{kind.__name__}.{name}")
    assert free == {"RefineSettings.seed", "Prior.mean"}


def test_nested_blocks_and_mappings_are_strict(tmp_path):
    path = params_with(tmp_path, ("    naming: {", "    cifar: {format: clip_benchmark, pat: x}\n    naming: {"))
    with pytest.raises(UserError, match=r"data.evaluation.cifar.pat: unknown key; did you mean `path`\?"):
        config.load(path, DataSettings)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline_lib").rglob("settings.py")), ids=lambda p: p.parent.name)
def test_every_field_of_a_section_has_a_docstring_under_it(path):
    blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    for block in blocks:
        for field, below in zip(block.body, [*block.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(below, ast.Expr), f"{block.name}.{field.target.id}"
                assert isinstance(below.value.value, str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", 'params.yaml: not valid YAML: while parsing a flow sequence in "'),
        ("a: 1\nb: {c: 1}\na: 2\n", 'params.yaml: line 3: found duplicate key "a"'),
        ("- 1\n", "expected sections such as `refine:`, found a list"),
        ("# nothing yet\n", "params.yaml: the file is empty"),
        ("a: " + "1" * 5_000, "params.yaml: not valid YAML: Exceeds the limit"),
        ("a: 0x" + "1" * 5_000, "params.yaml: not valid YAML: Exceeds the limit"),
        ("a: " + "[" * 1_000, "params.yaml: not valid YAML: maximum recursion depth exceeded"),
        (b"\xff\xfea\x00", "params.yaml: not UTF-8 text (invalid start byte at byte 0)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_files(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        config.read_params(path)


def test_an_error_of_the_parser_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(UserError, match=rf'not valid YAML: .*in "{re.escape(str(path))}", line 2, column 4') as raised:
        config.read_params(path)
    assert "unicode string" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-1.5E+3", -1500.0),
        ("017", 17),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("2026-01-31", "2026-01-31"),
        ("12:30:00", "12:30:00"),
        (".inf", float("inf")),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(text, value):
    """The core schema of YAML 1.2, in which DVC writes: no octal 017, no sexagesimal numbers, `no` is text."""
    found = config.parse_yaml(f"x: {text}", "a.yaml")["x"]
    assert (found, type(found)) == (value, type(value))


def test_an_empty_section_is_called_so(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("report:\n")
    with pytest.raises(UserError, match=r"params.yaml: report: is empty; write its keys below .*\(num_examples, "):
        config.load(path, ReportSettings)


def test_missing_file_and_section(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file.*--params"):
        config.read_params(tmp_path / "nowhere.yaml")
    path = tmp_path / "params.yaml"
    path.write_text("recipes: {}\n")
    with pytest.raises(UserError, match="section `refine` is missing"):
        config.load(path, RefineSettings)
