"""The only reader of params.yaml: one section at a time, as the frozen dataclass that its owner declares.

Each package keeps its section beside the code that reads it (`refine/settings.py`); no field that decides a result has
a default there, so params.yaml is the single place where a value is written. YAML is read by ruamel, as DVC does: in
YAML 1.2 `1e-6` is a number and `no` is text.
"""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import build, build_some, section_of, show_value, similar

T = TypeVar("T")


class _Document(io.StringIO):
    """A text that errors call by its name."""

    name = ""


class _Constructor(SafeConstructor):
    """Plain values only; a date stays the text that it is."""


def _construct_int(constructor: SafeConstructor, node: ScalarNode) -> int:
    number: int = constructor.construct_yaml_int(node)
    str(number)  # a ValueError where one in hexadecimals has more digits than an error could name
    return number


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
_Constructor.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML 1.2 document to plain values.

    >>> parse_yaml("{rate: 1e-6, answer: no, day: 2026-01-31}", "params.yaml")
    {'rate': 1e-06, 'answer': 'no', 'day': '2026-01-31'}

    Args:
        text: The document.
        name: What errors call it.

    Raises:
        UserError: It is not valid YAML, or a key stands twice in one block.
    """
    reader = YAML(typ="safe", pure=True)  # in C it would not say where an error stands
    reader.Constructor = _Constructor
    stream = _Document(text)
    stream.name = name
    try:
        return reader.load(stream)
    except DuplicateKeyError as error:
        raise UserError(f"{name}: line {error.problem_mark.line + 1}: {error.problem}; delete one") from None
    except (YAMLError, ValueError, RecursionError) as error:  # of values: a number of 5,000 digits, lists in lists
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def read_text(path: Path, remedy: str) -> str:
    """Read a UTF-8 text; `remedy` is what to do where it is missing.

    Raises:
        UserError: It cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


_parsed = functools.lru_cache(maxsize=4)(parse_yaml)


def read_params(params_file: Path) -> dict[str, Any]:
    """Read the whole of params.yaml as plain values.

    Raises:
        UserError: The file is missing or is not a YAML mapping.
    """
    text = read_text(params_file, "run from the project's folder or pass --params")
    params = copy.deepcopy(_parsed(text, str(params_file)))  # a stage asks for its sections one by one
    if params is None:
        raise UserError(f"{params_file}: the file is empty; compare with the params.yaml of the project")
    if not isinstance(params, dict):
        raise UserError(f"{params_file}: expected sections such as `refine:`, found {show_value(params)}")
    return params


def raw_section(params_file: Path, name: str) -> Any:
    """Read section `name` of params.yaml as plain values (for fingerprints and `recipes`).

    Raises:
        UserError: The file or the section is missing.
    """
    params = read_params(params_file)
    if name not in params:
        hint = similar(name, map(str, params)) or "; compare with the params.yaml of the project"
        raise UserError(f"{params_file}: section `{name}` is missing{hint}")
    return params[name]


def load(params_file: Path, kind: type[T]) -> T:
    """Read the section of params.yaml that `kind` declares, such as `RefineSettings`.

    Raises:
        UserError: A key is unknown, missing, of the wrong type or out of range; the message holds file, dotted path
            and remedy.
    """
    name = section_of(kind)
    return build(kind, raw_section(params_file, name), f"{params_file}: {name}")


def load_some(params_file: Path, kind: type[T]) -> T:
    """Read those keys of a section that `kind` has, for a reader who needs no more of it than these.

    Raises:
        UserError: See `load`; unknown keys are left to the section's owner.
    """
    name = section_of(kind)
    return build_some(kind, raw_section(params_file, name), f"{params_file}: {name}")
