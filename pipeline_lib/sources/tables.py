"""Text files that describe a set: UTF-8, plain or packed by gzip; and those of their rows that cannot be used.

A line ends at a line feed (where a file has none, at a carriage return) and at no other character, so that a caption
may hold any. A row that is not of its file's form is left out, counted and named, as a bad image is, and
`shard.max_bad_share` says how many may be; a file without one good row is refused.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline_lib.core.errors import UserError

MAX_JSON_BYTES = 2 << 30  # of a file that is parsed at once, unpacked; COCO's has 91 MB, and a small gzip may hold any
_PART = 1 << 20  # bytes of it that are read at a time; room for all that it might hold is not taken at once
MAX_LINE_BYTES = 16 << 20  # of a line, which is held in memory; 1,000 captions of the greatest length fit in


@dataclass(slots=True)
class Rows:
    """The rows of a file: how many there are, and which are left out."""

    path: Path
    unit: str = "line"  # what messages call one
    read: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)  # (its number, reason)

    def leave_out(self, number: int, reason: str) -> None:
        """Count row `number` as one that cannot be used."""
        self.bad.append((number, reason))

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield (name, reason) of each row that is left out."""
        return ((f"{self.path.name}: {self.unit} {number}", reason) for number, reason in self.bad)

    def check(self) -> None:
        """Refuse a file without one good row.

        Raises:
            UserError: There are rows, and all of them are bad.
        """
        if self.bad and len(self.bad) == self.read:
            number, reason = self.bad[0]
            others = f" (and so are all its {self.read} rows)" if self.read > 1 else ""
            raise UserError(f"{self.path}: {self.unit} {number}: {reason}{others}")


def plain_suffix(path: Path) -> str:
    """Return the suffix of a file without that of gzip: `.json` for a.json and a.json.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (number, line without its end) from 1 on; the line is None where it is not UTF-8.

    Raises:
        UserError: The file is missing, its gzip is broken, or a line is longer than `MAX_LINE_BYTES`.
    """
    with _opened(path) as file:
        first = file.readline(MAX_LINE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
        lines = [first] if first.endswith(b"\n") else first.split(b"\r")
        for number, line in enumerate(chain(lines, iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")), 1):
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{path}: line {number}: more than {MAX_LINE_BYTES} bytes")
            try:
                yield number, line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError:
                yield number, None


def read_json(path: Path, what: str = "JSON") -> Any:
    """Read a whole file of JSON, which messages call `what`.

    Raises:
        UserError: The file is missing, too large, not UTF-8, no JSON, or nested beyond what the parser bears.
    """
    content = bytearray()
    with _opened(path) as file:
        while len(content) <= MAX_JSON_BYTES and (part := file.read(_PART)):
            content += part
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path}: more than {MAX_JSON_BYTES} bytes of JSON")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {what} ({error})") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, ValueError, EOFError, zlib.error) as error:  # ValueError: of a name that no file can have
        raise UserError(f"{path}: cannot be read ({error})") from None
