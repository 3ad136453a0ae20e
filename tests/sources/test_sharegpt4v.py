"""ShareGPT4V's conversations: the answer is the caption, the head of the published file its test split."""

import json

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import sharegpt4v as module
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import assert_refused, data, image_file, open_for_evaluation, sharegpt4v, write


def test_the_answer_is_the_caption_and_the_path_the_key(tmp_path):
    samples = list(open_source(data(sharegpt4v(tmp_path), "sharegpt4v")).samples)
    assert [sample.key for sample in samples[:3]] == [
        "sam/images/000000",
        "coco/train2017/000000",
        "sam/images/000001",
    ], "one file name in two sets"
    assert samples[3].captions == ("Image 3.\nIt is long.",)
    assert samples[3].image.read() == image_file(3)


def test_the_head_of_the_published_file_is_its_test_split(tmp_path, monkeypatch):
    assert module.HEAD == 1000
    monkeypatch.setattr(module, "HEAD", 2)
    source = open_source(data(sharegpt4v(tmp_path), "sharegpt4v"))
    parts = split(source.samples, {"eval": "test", "refine": 1.0})
    texts = {name: [sample.captions[0][:7] for sample in part] for name, part in parts.items()}
    assert texts == {"eval": ["Image 0", "Image 1"], "refine": [f"Image {n}" for n in range(2, 6)]}
    assert len(list(open_for_evaluation(tmp_path, "sharegpt4v", split="train").samples)) == 4
    cut_out = sharegpt4v(tmp_path / "cut", name="first.json")
    with pytest.raises(UserError, match=r"list file .*test of part `eval` does not exist"):
        split(open_source(data(cut_out, "sharegpt4v")).samples, {"eval": "test"})


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../a.jpg"},
        {"image": 7},
        {"conversations": []},
        {"conversations": [{"from": "gpt", "value": "x"}]},
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
        {"conversations": [{}, {"from": "gpt", "value": None}]},
    ],
)
def test_an_entry_of_another_form_is_left_out_and_named(tmp_path, change):
    path = next(sharegpt4v(tmp_path).glob("*.json"))
    rows = json.loads(path.read_text())
    rows[4] |= change
    write(path, json.dumps(rows))
    source = open_source(data(tmp_path, "sharegpt4v"))
    assert len(list(source.samples)) == 5
    assert [number for number, _ in source.rows.bad] == [5]
    write(path, json.dumps([rows[4]]))
    assert_refused("entry 1: expected", tmp_path, "sharegpt4v")
