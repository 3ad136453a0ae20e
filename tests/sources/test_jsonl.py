"""JSON Lines: keys, captions and labels of each line; and what a user may get wrong."""

import gzip
import json

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import open_source
from tests.small_sets import assert_refused, data, image_file, jsonl, open_for_evaluation, write


def test_jsonl_with_keys_captions_and_labels(tmp_path):
    rows = [
        {"image": "p/a.png", "captions": ["one", "two"], "label": "dog"},
        {"image": "p/b.v2.png", "caption": "three", "key": "own", "labels": {"class": "cat", "size": "big"}},
    ]
    source = open_source(data(jsonl(tmp_path, rows), "jsonl"))
    first, second = source.samples
    assert (first.key, first.captions, first.labels) == ("p/a", ("one", "two"), {"class": 1})
    assert (second.key, second.captions, second.labels) == ("own", ("three",), {"class": 0, "size": 0})
    assert second.image.read() == image_file(1)
    assert {name: task.classnames for name, task in source.tasks.items()} == {"class": ("cat", "dog"), "size": ("big",)}


def read(root, content, kind="set.jsonl", **changes):
    source = open_source(data(write(root / kind, content), "jsonl", **changes))
    return [(s.key, s.captions, s.labels) for s in source.samples], source.rows


def lines_of(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_several_lines_of_an_image_are_one_sample_in_their_order(tmp_path):
    rows = [{"image": f"{n}.jpg", "caption": f"caption {k} of {n}"} for k in range(3) for n in range(2)]
    rows += [{"image": "1.jpg", "label": "cat"}, {"image": "2.jpg", "captions": ["alone"]}]
    found, counted = read(tmp_path, lines_of(rows))
    assert found == [
        ("0", tuple(f"caption {k} of 0" for k in range(3)), {}),
        ("1", tuple(f"caption {k} of 1" for k in range(3)), {"class": 0}),
        ("2", ("alone",), {}),
    ]
    assert (counted.read, counted.bad) == (8, [])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image": "a.jpg", "caption": "y", "label": "dog"}, "line 2: label `dog` of a.jpg, .* `cat` since line 1"),
        ({"image": "a.jpg", "label": "cat"}, "line 2: a.jpg is there since line 1; delete one"),
    ],
)
def test_lines_of_an_image_that_contradict_or_repeat_each_other_are_refused(tmp_path, more, message):
    write(tmp_path / "set.jsonl", lines_of([{"image": "a.jpg", "caption": "x", "label": "cat"}, more]))
    assert_refused(message, tmp_path, "jsonl")


def test_one_key_for_two_images_is_no_sample_of_both(tmp_path):
    """They stay apart here, and `check_keys` refuses them with both places."""
    rows = [{"image": "a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": "y", "key": "a"}]
    assert [captions for _, captions, _ in read(tmp_path, lines_of(rows))[0]] == [("x",), ("y",)]


@pytest.mark.parametrize("kind", ["metadata.jsonl", "set.json", "set.json.gz", "set.jsonl.gz"])
def test_other_files_of_the_same_rows(tmp_path, kind):
    """Hugging Face's names of fields, a JSON list, gzip and a byte-order mark."""
    rows = [{"file_name": f"{n}.jpg", "text": f"caption {n}"} for n in range(3)]
    text = "\ufeff" + (json.dumps(rows) if ".json" in kind and ".jsonl" not in kind else lines_of(rows))
    content = gzip.compress(text.encode()) if kind.endswith("gz") else text
    assert [(key, captions) for key, captions, _ in read(tmp_path, content, kind)[0]] == [
        (str(n), (f"caption {n}",)) for n in range(3)
    ]


def test_bad_lines_are_left_out_and_named(tmp_path):
    good = [json.dumps({"image": f"{n}.jpg", "caption": f"c\u2028\0 {n}"}) for n in range(3)]
    bad = ["{", "[" * 100_000, '{"image": 3}', '{"file_name": "b.jpg", "text": "x", "caption": "y"}', "\ud800"]
    content = "\n".join([*good, "", *bad]).encode("utf-8", "surrogatepass")
    found, counted = read(tmp_path, content)
    assert [captions for _, captions, _ in found] == [(f"c\u2028\0 {n}",) for n in range(3)]
    assert [number for number, _ in counted.bad] == [5, 6, 7, 8, 9]
    assert [reason[:8] for _, reason in counted.bad] == ["not JSON", "not JSON", "expected", "`text` a", "not UTF-"]
    assert counted.read == 8


def test_a_set_to_evaluate_needs_captions_or_labels(tmp_path):
    write(tmp_path / "set/set.jsonl", '{"image": "a.jpg"}\n')
    with pytest.raises(UserError, match="no line has captions or labels"):
        open_for_evaluation(tmp_path / "set", "jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"picture": "a.jpg"}', 'line 1: expected {"image"'),
        ('{"image": "a.jpg", "captions": "one"}', "line 1: `key` must be text and `captions` a list"),
        ('{"image": "a.jpg", "caption": "one", "key": 3}', "line 1: `key` must be text"),
        (
            '{"image": "a.jpg", "caption": ["one"]}',
            "line 1: `caption` must be text; a list of texts is called `captions`",
        ),
        ('{"image": "a.jpg", "label": "cat"}', 'no line has captions to train on; write {"image": "a.jpg", "captions"'),
        ('{"image": "a.jpg", "label": 3}', "line 1: `label` must be a class name"),
    ],
)
def test_what_is_not_jsonl(tmp_path, line, message):
    write(tmp_path / "set.jsonl", line + "\n")
    assert_refused(f"set.jsonl: {message}", tmp_path, "jsonl")
