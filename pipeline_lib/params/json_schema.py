"""Describes params.yaml as a JSON schema (draft 2020-12), by which editors complete, explain and check it."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline_lib.core.schema import Range
from pipeline_lib.params import fields
from pipeline_lib.params.sections import RECIPES, SECTIONS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {float: "number", int: "integer", str: "string", Path: "string", bool: "boolean", type(None): "null"}
BOUNDS = {  # of `Range`
    "at_least": "minimum",
    "above": "exclusiveMinimum",
    "at_most": "maximum",
    "below": "exclusiveMaximum",
    "a_multiple_of": "multipleOf",
}
OF_RECIPES = {
    "description": "A block per recipe, whose keys are the keyword arguments of the function of its name in "
    "pipeline_lib/refine/recipes.py; refine.recipe chooses one.",
    "type": "object",
    "additionalProperties": {"type": "object"},
}


def render_schema() -> str:
    """Return docs/params.schema.json."""
    sections = {name: _of_block(kind) for name, kind in SECTIONS.items()} | {RECIPES: OF_RECIPES}
    schema = {"$schema": DRAFT, "title": "params.yaml", **_object(sections, list(sections))}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _of_block(kind: type) -> dict[str, Any]:
    found = fields.read_fields(kind)
    properties = {one.name: {"description": one.meaning, **of_annotation(one.annotation)} for one in found}
    return {"description": fields.meaning_of(kind), **_object(properties, [one.name for one in found if one.required])}


def of_annotation(annotation: Any) -> dict[str, Any]:
    """Return the schema of what a field's annotation takes.

    >>> of_annotation(Annotated[int, Range(at_least=1)])
    {'type': 'integer', 'minimum': 1}
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return of_annotation(arguments[0]) | _bounds(arguments[1])
    if origin is Literal:
        return {"enum": list(arguments)}
    if fields.is_union(annotation):
        return {"anyOf": [of_annotation(one) for one in arguments]}
    if origin is tuple:
        count = {} if arguments[-1] is Ellipsis else {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "items": of_annotation(arguments[0]), **count}
    if fields.is_mapping(annotation):
        return {"type": "object", "additionalProperties": of_annotation(arguments[1])}
    return {"type": TYPES[annotation]} if annotation in TYPES else _of_block(annotation)


def _bounds(allowed: Range) -> dict[str, Any]:
    bounds = dataclasses.asdict(allowed)
    return {keyword: bounds[name] for name, keyword in BOUNDS.items() if bounds[name] is not None}
