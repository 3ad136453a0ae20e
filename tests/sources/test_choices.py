"""What the sets of choices share: limits and keys."""

import json

import pytest

from pipeline_lib.core.errors import UserError
from tests.small_sets import open_for_evaluation, winoground, write


def test_a_limit_counts_choices(tmp_path):
    source = open_for_evaluation(winoground(tmp_path / "set"), "image_pairs", limit=2)
    assert (len(source.choices), len(list(source.samples))) == (2, 4)


def test_doubled_keys_are_refused(tmp_path):
    row = {"images": ["a.jpg", "b.jpg"], "captions": ["of a", "of b"], "key": "k"}
    write(tmp_path / "set/pairs.jsonl", f"{json.dumps(row)}\n" * 2)
    with pytest.raises(UserError, match=r"key `k` stands twice: .*pairs.jsonl: line 1 and .*pairs.jsonl: line 2"):
        open_for_evaluation(tmp_path / "set", "image_pairs")
