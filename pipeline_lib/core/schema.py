"""Plain values to frozen dataclasses, strictly: the annotation of a field says what it takes, an error where it stands.

Unknown, missing and mistyped keys are refused, with a suggestion where a name is close, and so are numbers outside the
range that stands in the annotation. pydantic would do the same, at a quarter of a second of every stage's start.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pipeline_lib.core.errors import Mistakes, UserError

T = TypeVar("T")
LONGEST_NAME = 255  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, all finite: stands in the annotation of a field (`Annotated[int, Range(at_least=1)]`)."""

    at_least: float | None = None  # smallest number
    above: float | None = None  # smaller than the smallest
    at_most: float | None = None  # largest number
    below: float | None = None  # larger than the largest
    a_multiple_of: int | None = None  # divides it

    def __contains__(self, number: float) -> bool:
        return (
            is_number(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (self.a_multiple_of is None or number % self.a_multiple_of == 0)
        )

    def __str__(self) -> str:
        bounds = {name.replace("_", " "): bound for name, bound in dataclasses.asdict(self).items()}
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)


AtLeastOne = Annotated[int, Range(at_least=1)]
Eights = Annotated[int, Range(at_least=8, a_multiple_of=8)]
Count = Annotated[int, Range(at_least=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
ProperShare = Annotated[float, Range(above=0, below=1)]
ShareBelow1 = Annotated[float, Range(at_least=0, below=1)]


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def block(kind: type[T]) -> type[T]:
    """Make a class a block of params.yaml: a frozen keyword-only dataclass, each field with a docstring under it."""
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(kind)


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def section(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class the section `name` of params.yaml; see `block`."""

    def named(kind: type[T]) -> type[T]:
        made = block(kind)
        made.__section__ = name  # type: ignore[attr-defined]
        return made

    return named


def section_of(kind: type) -> str:
    """Return the name of the section that `kind` declares."""
    return str(kind.__section__)  # type: ignore[attr-defined]


def build(kind: type[T], value: Any, path: str) -> T:
    """Return `value` as dataclass `kind`, strictly; `path` is the dotted path that errors name.

    Raises:
        UserError: Keys are unknown, missing, of the wrong type or out of range; all of them are said.
    """
    if value is None:
        raise UserError(f"{path}: is empty; write its keys below it, indented ({', '.join(_required(kind))})")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a block of keys, found {show_value(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    mistakes, unknown = Mistakes(), [str(key) for key in value if key not in fields]
    mistakes.sentences += [f"{path}.{key}: unknown key{did_you_mean(key, fields)}" for key in unknown]
    misspelt = {name for key in unknown for name in closest(key, fields)}
    hints = typing.get_type_hints(kind, include_extras=True)
    filled = {}
    for name, field in fields.items():
        with mistakes:
            if name in value:
                filled[name] = convert(hints[name], value[name], f"{path}.{name}")
            elif name not in misspelt and not may_be_left_out(field, hints[name]):
                raise UserError(f"{path}.{name}: missing; add it ({_describe(hints[name])})")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                filled[name] = None
    mistakes.raise_all()
    return kind(**filled)


def build_some(kind: type[T], value: Any, path: str) -> T:
    """Do what `build` does with those keys of `value` that `kind` has."""
    if isinstance(value, dict):
        value = {field.name: value[field.name] for field in dataclasses.fields(kind) if field.name in value}  # type: ignore[arg-type]
    return build(kind, value, path)


def _required(kind: Any) -> list[str]:
    """List the names of the fields that cannot be left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [field.name for field in dataclasses.fields(kind) if not may_be_left_out(field, hints[field.name])]


def may_be_left_out(field: dataclasses.Field[Any], annotation: Any) -> bool:
    """Return whether a block may lack this field: it has a default, or may be null and then is."""
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    return has_default or type(None) in typing.get_args(annotation)


def convert(kind: Any, value: Any, path: str) -> Any:
    """Check `value` against `kind` and return it: scalars, Literal, X | None, tuples, mappings, Path, dataclasses."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _convert_number(kind, value, path)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, value, path)
    if origin is tuple:
        return _convert_tuple(kind, value, path)
    if origin is Literal:
        return _convert_literal(kind, value, path)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        item = typing.get_args(kind)[1]
        return _convert_mapping(item, value, path)
    if origin is None and _fits(kind, value):
        return kind(value)
    raise _mistyped(kind, value, path)


def _convert_mapping(kind: Any, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
    mistakes, converted = Mistakes(), {}
    for key, item in value.items():
        with mistakes:
            converted[str(key)] = convert(kind, item, f"{path}.{key}")
    mistakes.raise_all()
    return converted


def _convert_number(kind: Any, value: Any, path: str) -> Any:
    plain, allowed = typing.get_args(kind)
    number = convert(plain, value, path)
    if number not in allowed:
        raise UserError(f"{path}: {value} is out of range: {_describe(plain)}, {allowed}")
    return number


def _convert_union(kind: Any, value: Any, path: str) -> Any:
    choices = typing.get_args(kind)
    if value is None and type(None) in choices:
        return None
    fitting = [choice for choice in choices if choice is not type(None) and _resembles(choice, value)]
    if not fitting:
        raise _mistyped(kind, value, path)
    return convert(fitting[0], value, path)


def _resembles(kind: Any, value: Any) -> bool:
    """Return whether `value` is of the shape of `kind`, whatever may be wrong inside it."""
    kind = _plain(kind)
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) or (origin is not None and origin is not tuple and origin is not Literal):
        return isinstance(value, dict)
    return isinstance(value, list) if origin is tuple else origin is Literal or _fits(kind, value)


def _convert_tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    kinds = typing.get_args(kind)
    if not isinstance(value, list):
        raise _mistyped(kind, value, path)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise UserError(f"{path}: expected {len(kinds)} {_plural(kinds[0])}, found {len(value)}")
    return tuple(convert(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _convert_literal(kind: Any, value: Any, path: str) -> Any:
    allowed = typing.get_args(kind)
    if any(value == one and type(value) is type(one) for one in allowed):
        return value
    names = [str(one) for one in allowed]
    raise UserError(f"{path}: {show_value(value)} is not one of {', '.join(names)}{similar(str(value), names)}")


def _mistyped(kind: Any, value: Any, path: str) -> UserError:
    return UserError(f"{path}: expected {_describe(kind)}, found {show_value(value)}")


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, float) or is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str) and _can_be_a_file(value)
    return isinstance(value, kind)


def _can_be_a_file(path: str) -> bool:
    """Return whether a file system can hold each name of a path."""
    try:
        return "\0" not in path and all(len(os.fsencode(name)) <= LONGEST_NAME for name in path.split("/"))
    except UnicodeEncodeError:
        return False


def is_number(value: object) -> bool:
    """Return whether a value is a number, and one that a float can hold: neither NaN nor of 400 digits.

    >>> [is_number(value) for value in (1, 0.5, float("inf"), 10**400, True, "1")]
    [True, True, False, False, False, False]
    """
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def show_value(value: Any) -> str:
    """Return type and value, as an error names what it found."""
    name = {"NoneType": "null", "dict": "a block of keys", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )
    return name if value is None or isinstance(value, dict | list) else f"{name} {value!r}"


def _plain(kind: Any) -> Any:
    """Return `kind` without its range."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _describe(kind: Any) -> str:
    kind = _plain(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{_plural(arguments[0])}"
    if dataclasses.is_dataclass(kind) or (origin is not None and issubclass(origin, Mapping)):
        return "a block of keys"
    names = {float: "a number", int: "a whole number", str: "text", Path: "a path", bool: "true or false"}
    return names.get(kind, "null" if kind is type(None) else str(kind))


def _plural(kind: Any) -> str:
    return {float: "numbers", int: "whole numbers", str: "texts", Path: "paths"}.get(_plain(kind), "values")


def similar(name: str, known: Iterable[str]) -> str:
    """End an error about an unknown name with the closest known one; empty where none is close."""
    return "".join(f"; did you mean `{close}`?" for close in closest(name, known))


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known name that is like `name`, if there is one."""
    return difflib.get_close_matches(name, list(known), n=1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End an error about an unknown name with the closest known one, or with all of them."""
    known = list(known)
    return similar(name, known) or f"; known: {', '.join(known)}"
