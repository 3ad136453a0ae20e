"""The sections of params.yaml that decide results, and parameters by their dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core import config

DECIDING = ("data", "base", "shard", "cache_teacher", "refine", "evaluate")  # and of `recipes` the one that is used


def read_parameters(params_file: Path) -> dict[str, Any]:
    """Read the sections of params.yaml that decide results, of `recipes` the block that is used."""
    parameters = {name: config.raw_section(params_file, name) for name in DECIDING}
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
