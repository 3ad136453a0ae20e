"""JSON Lines: keys, captions and labels of each line; and what a user may get wrong."""

import pytest

from pipeline_lib.sources.formats import open_source
from tests.small_sets import assert_refused, data, image_file, jsonl, write


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
