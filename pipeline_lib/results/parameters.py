"""The sections of params.yaml that decide results, parameters by their dotted keys, and those that were edited."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from pipeline_lib.core import config

DECIDING = ("data", "base", "shard", "language", "cache_teacher", "refine", "evaluate")
"""Of `recipes` the one that is used does, too; `language` does where it has a stage."""


def read_parameters(params_file: Path) -> dict[str, Any]:
    """Read the sections of params.yaml that decide results, of `recipes` the block that is used."""
    lacking = {"language"} - config.read_params(params_file).keys()  # of a revision from before there were any
    parameters = {name: config.raw_section(params_file, name) for name in DECIDING if name not in lacking}
    if not (parameters.get("language") or {}).get("stages"):
        parameters.pop("language", None)
    recipe = parameters["refine"]["recipe"]
    return {**parameters, "recipes": {recipe: config.raw_section(params_file, "recipes").get(recipe)}}


def dotted_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping from dotted keys.

    >>> dotted_keys({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= dotted_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def changed(made_with: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the parameters that are others now than those which made an output, each with both values.

    Each field that both have is compared with all that is below it: parts and evaluation sets come and go. What is null
    there is as if it were not.

    >>> changed({"data": {"limit": 9, "parts": {"val": 0.1}}}, {"data": {"limit": 9, "parts": {"eval": 0.2}}})
    ['data.parts.val is None, was 0.1', 'data.parts.eval is 0.2, was None']

    Args:
        made_with: Fields by section, or by dotted names, as dvc.lock has some.
        now: Fields by section.
    """
    found = []
    for name, fields in made_with.items():
        there = reduce(lambda block, key: block.get(key) or {}, name.split("."), now)
        for field in (key for key in fields if key in there):
            before, after = (dotted_keys({f"{name}.{field}": values[field]}) for values in (fields, there))
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            found += [f"{key} is {after.get(key)}, was {before.get(key)}" for key in keys]
    return found
