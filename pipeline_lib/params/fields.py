"""Reads what is written of a block of params.yaml: each field's annotation, and the docstring under it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipeline_lib.core.schema import may_be_left_out


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a block."""

    name: str
    annotation: Any  # with its `Range`, where it has one
    meaning: str  # in one line
    required: bool


def read_fields(kind: type) -> list[Field]:
    """List the fields of a block's dataclass, inherited ones first, as `dataclasses.fields` does."""
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = {name: text for base in reversed(kind.__mro__) for name, text in _docstrings(base).items()}
    return [
        Field(one.name, hints[one.name], meanings[one.name], not may_be_left_out(one, hints[one.name]))
        for one in dataclasses.fields(kind)
    ]


def meaning_of(kind: type) -> str:
    """Return the class docstring of a block in one line."""
    return " ".join((kind.__doc__ or "").split())


def _docstrings(kind: type) -> dict[str, str]:
    """Return the text under each field that `kind` itself declares, by the field's name."""
    if not dataclasses.is_dataclass(kind):
        return {}
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(_classes(kind.__module__)[kind.__name__].body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def is_union(annotation: Any) -> bool:
    """Return whether an annotation is `X | Y`."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_mapping(annotation: Any) -> bool:
    """Return whether an annotation is `Mapping[str, X]`: keys that the user names."""
    return typing.get_origin(annotation) is Mapping


def block_in(annotation: Any) -> type | None:
    """Return the dataclass of a nested block: in `X`, in `X | None` and in `Mapping[str, X]`."""
    choices = typing.get_args(annotation) if is_union(annotation) or is_mapping(annotation) else (annotation,)
    return next((choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)), None)
