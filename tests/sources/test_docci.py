"""DOCCI's lines: descriptions, splits and images; a line of another form is left out."""

import json

from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import assert_refused, data, docci, image_file, open_for_evaluation, write


def test_docci_by_its_own_splits(tmp_path):
    source = open_source(data(docci(tmp_path), "docci"))
    samples = {sample.key: sample for sample in source.samples}
    assert list(samples)[:3] == ["train_00000", "train_00001", "test_00002"]
    assert samples["test_00002"].image.read() == image_file(2)
    [text] = samples["test_00002"].captions
    assert text.startswith("Sentence 2 word0")
    assert len(text.split()) == 136
    parts = split(source.samples, {"refine": "train", "eval": "test"})
    assert {name: len(part) for name, part in parts.items()} == {"refine": 4, "eval": 2}
    assert [sample.key for sample in open_for_evaluation(tmp_path, "docci", split="test").samples] == [
        "test_00002",
        "test_00005",
    ]


def test_a_line_of_another_form_is_left_out_and_named(tmp_path):
    path = docci(tmp_path) / "docci_descriptions.jsonlines"
    good = {"image_file": "a.jpg", "description": "x", "split": "test"}
    odd = [{**good, "description": None}, {**good, "image_file": "../a.jpg"}, [good], {"image_file": "a.jpg"}]
    lines = "".join(json.dumps(one) + "\n" for one in odd)
    write(path, path.read_text() + lines + "{")
    source = open_source(data(tmp_path, "docci"))
    assert len(list(source.samples)) == 6
    assert [number for number, _ in source.rows.bad] == [7, 8, 9, 10, 11]
    assert source.rows.read == 11
    write(path, lines)
    assert_refused(r"docci_descriptions.jsonlines: line 1: expected \{\"image_file\"", tmp_path, "docci")
