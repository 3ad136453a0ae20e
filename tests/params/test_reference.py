"""docs/params.md: every key of params.yaml once, in the file's order, in words."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from pipeline_lib.core import config
from pipeline_lib.core.schema import AtLeastOne, Eights, Share, ShareBelow1
from pipeline_lib.params.reference import in_words, render_reference

ROOT = Path(__file__).parents[2]
PARAMS = (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (Path, "path"),
        (bool, "true or false"),
        (AtLeastOne | None, "whole number, at least 1, or null"),
        (Eights, "whole number, at least 8 and a multiple of 8"),
        (str | None, "text or null"),
        (float | str, "number or text"),
        (Literal["a"], "`a`"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (tuple[Share, ...], "list of numbers, each at least 0 and at most 1"),
        (tuple[ShareBelow1, ShareBelow1], "list of 2 numbers, each at least 0 and below 1"),
        (tuple[int, ...], "list of whole numbers"),
        (Mapping[str, float | str], "names of your own: number or text"),
    ],
)
def test_types_in_words(annotation, words):
    assert in_words(annotation) == words


def test_every_key_stands_in_its_section_in_the_order_of_the_file():
    page = render_reference(PARAMS)
    params = config.parse_yaml(PARAMS, "params.yaml")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert [*sections] == [*params]
    for name, values in params.items():
        keys = re.findall(r"^- \*\*`(\w+)`\*\*", sections[name], re.MULTILINE)
        assert keys == ([] if name == "recipes" else [*values])
    blocks = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert blocks == [
        "data.evaluation.<name>",
        "base.demo",
        "language.stages.<name>",
        "language.tune",
        "refine.adapter",
        "evaluate.few_shot",
    ]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("refine", "- **`learning_rate`** (number, at least 0). Default: `5e-5`. "),
        ("refine", "- **`betas`** (list of 2 numbers, each at least 0 and below 1). Default: `[0.9, 0.999]`. "),
        ("refine", "- **`micro_batch`** (whole number, at least 1, or null). Default: `null`. "),
        ("data", "Default: `{base: base, refine: refine, val: val, eval: eval}`. "),
        ("data", "- **`evaluation`** (names of your own: the block below). Default: `{naming: {format: openmoji, "),
        ("evaluate", "- **`prompt`** (text). Default: `a picture of {}`. "),
        ("evaluate", "- **`confidence`** (number, above 0 and below 1). Default: `0.95`. "),
        ("base", "- **`demo`** (the block below or null). May be left out. "),
    ],
)
def test_a_line_says_what_it_takes_and_what_the_default_is(section, line):
    assert line in render_reference(PARAMS).split(f"## `{section}`")[1].split("\n## ")[0]


def test_a_key_that_the_file_leaves_out_is_listed_without_a_default():
    start, end = PARAMS.index("  demo:\n"), PARAMS.index("\nshard:")
    page = render_reference(PARAMS[:start] + PARAMS[end:])
    assert "- **`demo`** (the block below or null). May be left out. " in page
    (line,) = (line for line in page.splitlines() if line.startswith("- **`embed_dim`** (whole number, at least 1). "))
    assert "Default" not in line


def test_a_new_recipe_and_another_value_of_one_leave_it_as_it_is():
    page = render_reference(PARAMS)
    for old, new in (("  hycd: {", "  mine: {weight: 1.0}\n  hycd: {"), ("{scale: 100.0", "{scale: 50.0")):
        assert PARAMS.count(old) == 1
        assert render_reference(PARAMS.replace(old, new)) == page
    assert render_reference(PARAMS.replace("  seed: 0\n  epochs", "  seed: 1\n  epochs")) != page
