"""Text files that describe a set: what ends a line, what is refused, and rows that are left out."""

import gzip
import tracemalloc

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import tables
from pipeline_lib.sources.tables import Rows, read_json, read_text_lines
from tests.small_sets import write


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfa\r\nb\rc\x0cd\n\n\xff\nf", ["a", "b\rc\x0cd", "", None, "f"]),
        ("a\u2028b\x85c".encode(), ["a\u2028b\x85c"]),
        (b"old\rmac\r", ["old", "mac", ""]),
        (b"", [""]),
    ],
)
def test_a_line_ends_at_a_line_feed_alone(tmp_path, content, lines):
    assert [line for _, line in read_text_lines(write(tmp_path / "a.txt", content))] == lines


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_what_is_too_large_unpacked_is_refused(tmp_path, name, monkeypatch):
    """A gzip of a few bytes may hold any number of them."""
    monkeypatch.setattr(tables, "MAX_JSON_BYTES", 1000)
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    content = b"[" + b" " * 1000 + b"]"
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=r"more than 1000 bytes of JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"line 1: more than 1000 bytes"):
        list(read_text_lines(path))


def test_a_small_file_takes_little_room(tmp_path):
    path = write(tmp_path / "a.json", b"[]")
    tracemalloc.start()
    try:
        assert read_json(path) == []
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # bytes; not what a file may hold at most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b""])
def test_what_is_not_json_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"a.json: not JSON"):
        read_json(write(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"[]" * 1000, mtime=0)[:-9], None], ids=["no gzip", "cut", "none"]
)
def test_a_missing_or_broken_file_is_refused(tmp_path, content):
    path = tmp_path / "a.json.gz"
    if content is not None:
        path.write_bytes(content)
    for read in (read_json, lambda path: list(read_text_lines(path))):
        with pytest.raises(UserError, match=r"a.json.gz: cannot be read"):
            read(path)


def test_rows_are_refused_where_none_is_good(tmp_path):
    rows = Rows(tmp_path / "a.csv", read=2, bad=[(2, "why"), (3, "why")])
    with pytest.raises(UserError, match=r"a.csv: line 2: why \(and so are all its 2 rows\)"):
        rows.check()
    rows.read = 3
    rows.check()
    assert list(rows.named()) == [("a.csv: line 2", "why"), ("a.csv: line 3", "why")]
