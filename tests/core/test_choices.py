"""The relation table: read as it was written, and never another one."""

import pytest

from pipeline_lib.core import artifacts
from pipeline_lib.core.choices import TABLE, Choice, read_choices, write_choices
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import Part

ONE = Choice(key="a/0", images=("i",), captions=("right", "too"), negatives=("wrong",), groups=("g", "h"))
PAIR = Choice(key="1", images=("i", "j"), captions=("of i", "of j"))
GONE = Choice(key="2", images=("k",), captions=("c",), negatives=("n",), left_out="its image `k` was left out")


def part(folder) -> Part:
    return Part(folder, artifacts.read_manifest(folder))


def test_what_is_written_is_read(tmp_path):
    write_choices(tmp_path, [ONE, PAIR, GONE])
    assert list(read_choices(tmp_path)) == [ONE, PAIR, GONE]
    artifacts.write_manifest(tmp_path, "shard")
    assert part(tmp_path).choices == [ONE, PAIR]


def test_a_part_without_a_table_has_no_choices(tmp_path):
    artifacts.write_manifest(tmp_path, "shard")
    assert part(tmp_path).choices == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2: expected a block of keys, found a list"),
        ('{"key": "1", "images": ["i"]}', "line 2.captions: missing"),
        ('{"key": "1", "images": "i", "captions": []}', "line 2.images: expected a list of texts, found str 'i'"),
        ('{"key": "1", "images": ["i"], "captions": [1]}', r"line 2.captions\[0\]: expected text, found int 1"),
        ('{"key": 1, "images": ["i"], "captions": []}', "line 2.key: expected text, found int 1"),
    ],
)
def test_a_line_that_is_no_choice_is_named(tmp_path, line, message):
    write_choices(tmp_path, [ONE])
    with (tmp_path / TABLE).open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=rf"choices.jsonl: {message}"):
        list(read_choices(tmp_path))


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text(path.read_text().upper())])
def test_another_table_than_the_listed_one_is_refused(tmp_path, change):
    write_choices(tmp_path, [ONE])
    artifacts.write_manifest(tmp_path, "shard")
    change(tmp_path / TABLE)
    with pytest.raises(
        UserError, match=r"choices.jsonl: .*(missing|differs|manifest says).*; run `dvc repro -f shard`"
    ):
        _ = part(tmp_path).choices


@pytest.mark.parametrize(
    ("choice", "hopeless"),
    [
        (ONE, False),
        (PAIR, False),
        (Choice(key="", images=("i",), captions=("a", "b"), negatives=("c", "b")), True),
        (Choice(key="", images=("i", "j"), captions=("a", "a")), True),
        (Choice(key="", images=("i", "i"), captions=("a", "b")), True),
    ],
)
def test_no_model_can_tell_apart_what_is_the_same(choice, hopeless):
    assert choice.is_unanswerable == hopeless
