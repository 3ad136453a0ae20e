"""Strategies that draw a mutated copy of a file: by bytes, by lines, and by the values of JSON or YAML in it."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]

TEXTS = [
    '"', "'", '""', "\0", "\ufeff", "\r", "\n", "\t", ",", "|", "\\", "{}", "\u202eabc", "\u2028", "\x85", "\U0001f600",
    " ", "..", "/", "../../x", "/etc/passwd", "/dev/zero", "/dev/stdin", "a" * 300, "é" * 200, "%s%n", "{0.__class__}",
]  # fmt: skip
BYTES = [*(text.encode() for text in TEXTS), b"\xff\xfe", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\x1f\x8b\x08"]
NESTED = 100_000
VALUES = [  # of JSON, as text
    "null", "true", "false", "0", "-1", "1.5", "1e999", "-1e999", "NaN", "1" * 30, "1" * 400, "1" * 5_000,
    '""', '" "', '"a"', "[]", "{}", "[null]", "[[]]", "[{}]", '{"": ""}', '{"a": 1, "a": 2}', '"\\ud800"', '"\\u0000"',
    '"../../x"', '"/dev/zero"',
    '"' + "a" * 5_000 + '"', "[" * NESTED + "]" * NESTED, '{"a":' * NESTED + "1" + "}" * NESTED,
]  # fmt: skip
SCALARS = [  # of YAML, as text
    "", "null", "~", "true", "no", "-1", "0", "1e999", ".nan", ".inf", "-.inf", "0x10", "0o7", "1_000",
    "1" * 30, "1" * 400, "1" * 5_000, "0x" + "1" * 5_000,
    "[]", "{}", "[1, 2]", "{a: b}", "2026-01-31", "2026-99-99", "12:30:45", '"\\ud800"', "'", '"', "*a", "&a [*a]",
    "!!binary aGk=", "!!python/object/apply:os.getcwd []", "!!set {a}", "!!float x", "!!int x", "|", "? a", "<<: 1",
    "@", "\t", "[" * 1_000, "{a: " * 1_000, "a" * 300, "..", "/", "\u202e", "\0",
]  # fmt: skip


def mutated(original: bytes, kind: str) -> st.SearchStrategy[bytes]:
    """Draw a copy of a file with one to three edits; `kind`: json, yaml, text or bytes."""
    known = [_flip, _cut, _double, _insert, *EDITS_OF[kind]]

    @st.composite
    def edited(draw: Draw) -> bytes:
        data = original
        for edit in draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
            data = edit(draw, data)
        return data

    return edited()


# ---- bytes ----


def _place(draw: Draw, data: bytes) -> int:
    return draw(st.integers(0, len(data)))


def _flip(draw: Draw, data: bytes) -> bytes:
    place, bit = _place(draw, data), draw(st.integers(0, 7))
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] if place < len(data) else data


def _span(draw: Draw, data: bytes) -> tuple[int, int]:
    start = _place(draw, data)
    return start, draw(st.integers(start, len(data)))


def _cut(draw: Draw, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:start] + data[end:]


def _double(draw: Draw, data: bytes) -> bytes:
    start, end = _span(draw, data)
    return data[:end] + data[start:end] * draw(st.sampled_from([1, 1, 3, 50])) + data[end:]


def _insert(draw: Draw, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw(st.sampled_from(BYTES)) + data[place:]


# ---- lines ----


def _lines(draw: Draw, data: bytes) -> bytes:
    """Let a line stand twice, elsewhere, or not at all."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    one, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    kept = lines if draw(st.booleans()) else lines[:one] + lines[one + 1 :]
    return b"".join(kept[:other] + [lines[one]] * draw(st.integers(0, 2)) + kept[other:])


def _scalar(draw: Draw, data: bytes) -> bytes:
    """Replace what follows a colon or a comma on a line of YAML."""
    text = data.decode(errors="surrogateescape")
    places = [match.span(1) for match in re.finditer(r"[:,] ([^\n,}]*)", text)]
    if not places:
        return data
    start, end = draw(st.sampled_from(places))
    changed = text[:start] + draw(st.sampled_from(SCALARS)) + text[end:]
    return changed.encode(errors="surrogateescape")


# ---- JSON ----


def _value(draw: Draw, data: bytes) -> bytes:
    """Replace, add or take away a value of a JSON file, or of a line of JSON Lines."""
    whole = _parsed(data)
    lines = [data] if whole is not None else data.splitlines(keepends=True)
    trees = [(number, tree) for number, line in enumerate(lines) if (tree := _parsed(line)) is not None]
    if not trees:
        return data
    number, tree = _one_of(draw, trees)
    box = [tree]
    parent, key = _one_of(draw, [(box, 0), *_places(tree)])
    what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    mark = "\1value\1"
    if what == "replace" or parent is box:
        parent[key] = mark
    elif what == "remove":
        del parent[key]
    elif isinstance(parent, dict):
        parent[draw(st.sampled_from(["", "a", "key", "captions", "label", "id"]))] = mark
    else:
        parent.append(mark)
    text = json.dumps(box[0]).replace(json.dumps(mark), draw(st.sampled_from(VALUES)))
    end = b"" if whole is not None else b"\n"
    return b"".join([*lines[:number], text.encode() + end, *lines[number + 1 :]])


def _one_of(draw: Draw, some: Sequence[Any]) -> Any:
    return some[draw(st.integers(0, len(some) - 1))]


def _parsed(data: bytes) -> Any:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key or index) of every value below `tree`."""
    todo = [tree]
    while todo:
        one = todo.pop()
        for key, value in list(one.items() if isinstance(one, dict) else enumerate(one)):
            yield one, key
            if isinstance(value, dict | list):
                todo.append(value)


EDITS_OF = {"json": [_value] * 6, "yaml": [_lines, *[_scalar] * 6], "text": [_lines] * 3, "bytes": []}
