"""docs/params.schema.json: a validator of its own accepts the project's files and refuses what the loader refuses."""

import copy
import json
import math
from pathlib import Path

import pytest

from pipeline_lib.core import config, schema
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.generate import SCHEMA
from pipeline_lib.params.json_schema import render_schema
from pipeline_lib.params.sections import SECTIONS
from tests.params.test_check import WHOLE_FILES

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads(render_schema())
IS = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
}


def of(kind, fits):
    """A keyword that says something of values of one type only."""
    return lambda value, wanted: not IS[kind](value) or fits(value, wanted)


FITS = {
    "type": lambda value, wanted: IS[wanted](value),
    "enum": lambda value, wanted: value in wanted,
    "minimum": of("number", lambda value, bound: value >= bound),
    "exclusiveMinimum": of("number", lambda value, bound: value > bound),
    "maximum": of("number", lambda value, bound: value <= bound),
    "exclusiveMaximum": of("number", lambda value, bound: value < bound),
    "multipleOf": of("number", lambda value, factor: value % factor == 0),
    "minItems": of("array", lambda value, count: len(value) >= count),
    "maxItems": of("array", lambda value, count: len(value) <= count),
    "$schema": lambda _, text: isinstance(text, str),
    "title": lambda _, text: isinstance(text, str),
    "description": lambda _, text: isinstance(text, str),
}


def faults(value, rule, path=""):
    """What draft 2020-12 says is wrong with a value, by path, for the keywords that the schema uses."""
    return [fault for keyword, wanted in rule.items() for fault in faults_of(keyword, wanted, value, rule, path)]


def faults_of(keyword, wanted, value, rule, path):
    if keyword in FITS:
        return [] if FITS[keyword](value, wanted) else [path]
    if keyword == "anyOf":
        return [] if any(not faults(value, choice) for choice in wanted) else [path]
    if keyword == "items":
        items = enumerate(value if IS["array"](value) else [])
        return [fault for index, item in items for fault in faults(item, wanted, f"{path}[{index}]")]
    keys = value if IS["object"](value) else {}
    if keyword == "required":
        return [f"{path}.{key}" for key in wanted if IS["object"](value) and key not in keys]
    named = rule.get("properties", {})
    if keyword == "properties":
        return [fault for key in keys if key in named for fault in faults(keys[key], named[key], f"{path}.{key}")]
    assert keyword == "additionalProperties", f"unknown keyword {keyword}"
    others = [key for key in keys if key not in named]
    if wanted is False:
        return [f"{path}.{key}" for key in others]
    return [fault for key in others for fault in faults(keys[key], wanted, f"{path}.{key}")]


@pytest.mark.parametrize("path", WHOLE_FILES, ids=lambda p: p.stem)
def test_the_projects_own_files_fit_and_name_it_in_their_first_line(path):
    assert faults(config.read_params(path), DOCUMENT) == []
    assert path.read_text().splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA.as_posix()}"


def set_key(params, key, value):
    """`params` with a dotted key set, or removed where `value` is `...`."""
    params = block = copy.deepcopy(params)
    *way, last = key.split(".")
    for part in way:
        block = block[part]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    return params


BROKEN = [
    ("refin", {}),
    ("refine", ...),
    ("refine.learning_rat", 1e-5),
    ("refine.learning_rate", ...),
    ("refine.learning_rate", "5e-5"),
    ("refine.learning_rate", -1.0),
    ("refine.batch_size", 0),
    ("refine.batch_size", 1.5),
    ("refine.batch_size", True),
    ("refine.micro_batch", 0),
    ("refine.schedule", "cosin"),
    ("refine.lock_text", 0),
    ("refine.grad_clip", 0.0),
    ("refine.betas", [0.9]),
    ("refine.betas", [0.9, 0.9, 0.9]),
    ("refine.betas", [0.9, 1.0]),
    ("refine.betas", 0.9),
    ("refine.betas", [0.9, "x"]),
    ("evaluate.confidence", 1),
    ("evaluate.seed", -1),
    ("evaluate.wise_ft", [1.5]),
    ("cache_teacher.chunk_size", 12),
    ("cache_teacher.max_bad_share", 1.1),
    ("paths.base", None),
    ("data.parts", {"refine": None}),
    ("data.parts", [0.5]),
    ("data.evaluation", {"mine": {"format": "coco"}}),
    ("data.evaluation", {"mine": {"format": "coco", "path": "x", "limits": 1}}),
    ("data.evaluation", {"mine": {"format": "cocoa", "path": "x"}}),
    ("base.demo.dropout", 1.0),
    ("base.demo.dropout", ...),
    ("base.demo", 3),
    ("report", None),
]
FITTING = [
    ("refine.learning_rate", 1),
    ("refine.micro_batch", 8),
    ("refine.grad_clip", 1),
    ("data.parts", {"refine": "list.txt", "val": 0.1}),
    ("data.evaluation", {"mine": {"format": "coco", "path": "x", "limit": None}}),
    ("data.evaluation", {"mine": {"format": "coco", "path": "x", "limit": 3, "images": "y", "split": "z"}}),
    ("base.demo", None),
    ("base.demo", ...),
    ("evaluate.wise_ft", []),
]


def loads(params):
    """Whether the loader takes these sections."""
    try:
        for name, kind in SECTIONS.items():
            schema.build(kind, params[name], name)
    except (UserError, KeyError):
        return False
    return params.keys() <= {*SECTIONS, "recipes"}


@pytest.mark.parametrize(("key", "value"), BROKEN, ids=str)
def test_a_broken_key_is_refused_by_schema_and_loader(key, value):
    params = set_key(config.read_params(ROOT / "params.yaml"), key, value)
    assert len(faults(params, DOCUMENT)) == 1
    assert faults(params, DOCUMENT)[0].removeprefix(".").startswith(key.rpartition(".")[0])
    assert not loads(params)


@pytest.mark.parametrize(("key", "value"), FITTING, ids=str)
def test_a_fitting_key_is_taken_by_schema_and_loader(key, value):
    params = set_key(config.read_params(ROOT / "params.yaml"), key, value)
    assert faults(params, DOCUMENT) == []
    assert loads(params)


@pytest.mark.parametrize("recipes", [{}, {"mine": {}}, {"mine": {"weight": 1.0, "prior": {"kind": "x"}}}])
def test_recipes_are_any_blocks(recipes):
    params = set_key(config.read_params(ROOT / "params.yaml"), "recipes", recipes)
    assert faults(params, DOCUMENT) == []
    assert faults(set_key(params, "recipes", {"mine": 1}), DOCUMENT) == [".recipes.mine"]


def test_every_key_is_described():
    def described(rule):
        for property_rule in rule.get("properties", {}).values():
            assert property_rule["description"]
            described(property_rule)

    described(DOCUMENT)
    assert DOCUMENT["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert DOCUMENT["properties"]["refine"]["properties"]["epochs"] == {
        "description": "Passes over part `refine`.",
        "type": "integer",
        "minimum": 1,
    }


def test_the_numbers_of_the_file_are_finite():
    """JSON has neither NaN nor infinity, so that nothing in the schema need refuse them."""

    def numbers(value):
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [value] if isinstance(value, float) else [n for item in items for n in numbers(item)]

    assert all(math.isfinite(n) for path in WHOLE_FILES for n in numbers(config.read_params(path)))
