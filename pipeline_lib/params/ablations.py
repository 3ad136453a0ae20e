"""What each ablation changes: the entries of ablations/changes.yaml, and one for every recipe."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import show_value
from pipeline_lib.params.sections import RECIPES
from pipeline_lib.refine.settings import RefineSettings

FOLDER = Path("ablations")
CHANGES = FOLDER / "changes.yaml"
RECIPE = "refine.recipe"
_FUNCTIONS = Path(__file__).parents[1] / "refine/recipes.py"


@dataclass(frozen=True)
class Ablation:
    """What is set on top of params.yaml, under which name, and why."""

    name: str
    sentence: str
    changes: dict[str, Any]  # by dotted key; a mapping replaces the block of that key
    origin: str  # the file that says so


def read_ablations(params_file: Path, changes_file: Path) -> list[Ablation]:
    """List an ablation for every recipe that params.yaml has a block for and does not choose, then the written ones.

    A written one may have the name of the recipe that it chooses, and stands for it.

    >>> [one.changes for one in read_ablations(Path("params.yaml"), CHANGES) if one.name == "hycd"]
    [{'refine.recipe': 'hycd'}]

    Raises:
        UserError: A file cannot be read, or an entry of `changes_file` is malformed, or has a name of a recipe that it
            does not choose.
    """
    blocks = config.raw_section(params_file, RECIPES) or {}
    written = read_changes(changes_file)
    for one in written:
        if one.name in blocks and one.changes.get(RECIPE) != one.name:
            raise UserError(f"{changes_file}: {one.name}: has the name of a recipe in {params_file}; rename it")
    known = {config.load(params_file, RefineSettings).recipe, *(one.name for one in written)}
    return [*(_choose_recipe(name) for name in blocks if name not in known), *written]


def read_changes(changes_file: Path) -> list[Ablation]:
    """Read the ablations that `changes_file` writes down, in its order.

    Raises:
        UserError: It cannot be read, or an entry is malformed.
    """
    text = config.read_text(changes_file, "run from the project's folder or pass --ablations")
    entries = config.parse_yaml(text, str(changes_file))
    if not isinstance(entries, dict | None):
        raise UserError(f"{changes_file}: expected a block for each ablation, found {show_value(entries)}")
    return [_read_entry(str(name), entry, changes_file) for name, entry in (entries or {}).items()]


def _read_entry(name: str, entry: Any, changes_file: Path) -> Ablation:
    path = f"{changes_file}: {name}"
    if not re.fullmatch(r"\w[\w-]*", name) or name == changes_file.stem:
        raise UserError(f"{path}: cannot be the name of an ablation; take another, of letters, digits, `_` and `-`")
    if not isinstance(entry, dict) or entry.keys() != {"sentence", "changes"}:
        raise UserError(f"{path}: expected a block of the keys `sentence` and `changes`")
    if not isinstance(entry["sentence"], str):
        raise UserError(f"{path}.sentence: expected text, found {show_value(entry['sentence'])}")
    if not isinstance(entry["changes"], dict) or not entry["changes"]:
        raise UserError(f"{path}.changes: names no key; write dotted keys and values, like `{RECIPE}: hycd`")
    return Ablation(name, " ".join(entry["sentence"].split()), entry["changes"], str(changes_file))


def _choose_recipe(name: str) -> Ablation:
    functions = ast.parse(_FUNCTIONS.read_text(encoding="utf-8")).body
    said = {one.name: ast.get_docstring(one) for one in functions if isinstance(one, ast.FunctionDef)}
    first = (said.get(name) or "").partition("\n")[0]
    return Ablation(name, f"Recipe `{name}`: {first}", {RECIPE: name}, "pipeline_lib/refine/recipes.py")


def pick(params: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, or `...` where there is none.

    >>> pick({"refine": {"seed": 0}}, "refine.seed"), pick({"refine": {"seed": 0}}, "refine.speed")
    (0, Ellipsis)
    """
    value: Any = params
    for part in key.split("."):
        value = value.get(part, ...) if isinstance(value, Mapping) else ...
    return value
