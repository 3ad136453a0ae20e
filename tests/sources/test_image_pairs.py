"""Winoground, NaturalBench-Retrieval and MMVP-VLM as published, and pairs of one's own; the rest is refused."""

import json

import pytest

from pipeline_lib.core.choices import Choice
from pipeline_lib.core.errors import UserError
from tests.small_sets import image_file, mmvp, naturalbench, open_for_evaluation, winoground, write


def test_winoground(tmp_path):
    source = open_for_evaluation(winoground(tmp_path / "set"), "image_pairs")
    assert source.choices[1] == Choice(
        key="10",
        images=("ex_1_img_0", "ex_1_img_1"),
        captions=("a dog 1 on a cat", "a cat on a dog 1"),
        groups=("Relation",),
    )
    samples = {sample.key: sample for sample in source.samples}
    assert len(samples) == 10
    assert samples["ex_1_img_1"].image.read() == image_file(3, "PNG")


def test_naturalbench_retrieval(tmp_path):
    source = open_for_evaluation(naturalbench(tmp_path / "set"), "image_pairs")
    assert source.choices[2] == Choice(key="2", images=("2", "102"), captions=("side 0 of 2", "side 1 of 2"))
    assert [choice.images[1] for choice in source.choices[:2]] == ["101", "101"]
    assert len(list(source.samples)) == 7, "an image of two pairs is one sample"


def test_mmvp_vlm_pairs_questions_by_their_numbers(tmp_path):
    source = open_for_evaluation(mmvp(tmp_path / "set"), "image_pairs")
    assert source.choices[2] == Choice(
        key="5-6",
        images=("Camera Perspective/5", "Camera Perspective/6"),
        captions=("a photo of a statement, 5", "a photo of a statement, 6"),
        groups=("Camera Perspective",),
    )
    assert [choice.key for choice in source.choices] == ["1-2", "3-4", "5-6", "7-8"]
    assert len(list(source.samples)) == 8


def test_pairs_of_ones_own(tmp_path):
    row = {"images": ["a.jpg", "b.jpg"], "captions": ["of a", "of b"], "tags": ["counting", "hard"]}
    write(tmp_path / "set/pairs.jsonl", f"{json.dumps(row)}\n")
    (choice,) = open_for_evaluation(tmp_path / "set", "image_pairs").choices
    assert choice == Choice(key="1", images=("a", "b"), captions=("of a", "of b"), groups=("counting", "hard"))


PUBLISHED = {"id": 0, "image_0": "a", "image_1": "b", "caption_0": "x", "caption_1": "y"}


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["a.jpg"], "captions": ["of a"]},
        {"images": ["a.jpg", "b.jpg"], "captions": ["a", "b", "c"]},
        {"images": ["a.jpg", "b.jpg"], "captions": ["a", "b"], "negatives": ["c"]},
        {"images": ["a.jpg", "b.jpg"], "captions": ["a", None]},
        {**PUBLISHED, "id": None},
        {**PUBLISHED, "caption_1": None},
    ],
)
def test_what_is_no_pair(tmp_path, row):
    (tmp_path / "set/images").mkdir(parents=True)
    write(tmp_path / "set/pairs.jsonl", json.dumps(row))
    with pytest.raises(
        UserError, match=r'pairs.jsonl: line 1: expected "image_0", "image_1", "caption_0" and "caption'
    ):
        open_for_evaluation(tmp_path / "set", "image_pairs")


HEADER = "Question ID,Type,Statement\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,x,y\n", r"Questions.csv: expected the header `Question ID,Type,Statement`, found 'a,b,c'"),
        (HEADER + "1,x\n", r"Questions.csv: row 2: expected a new number, a type and a statement"),
        (HEADER + "1,x,y\n1,x,z\n", "row 3: expected a new number"),
        (HEADER + "one,x,y\n", "row 2: expected a new number"),
        (HEADER + "1,x,y\n", "question 1: its partner is question 2, and there is none of type `x`"),
        (HEADER + "3,x,y\n4,z,y\n", "question 3: its partner is question 4, and there is none of type `x`"),
        (HEADER + "1" * 5_000 + ",x,y\n", "row 2: expected a new number"),
        (HEADER.encode() + b"1,caf\xe9,y\n", r"Questions.csv: not a table of UTF-8 text \('utf-8' codec can't decode"),
        (HEADER + "1,x," + "y" * 200_000, r"Questions.csv: not a table of UTF-8 text \(field larger than field limit"),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_what_is_no_table_of_questions(tmp_path, text, message):
    (tmp_path / "set/MLLM_VLM Images").mkdir(parents=True)
    write(tmp_path / "set/Questions.csv", text)
    with pytest.raises(UserError, match=message):
        open_for_evaluation(tmp_path / "set", "image_pairs")


def test_halves_of_signs_in_keys_and_names_are_written_out(tmp_path):
    """As JSON may hold them, and neither UTF-8 nor a file name can."""
    (tmp_path / "set/images").mkdir(parents=True)
    write(tmp_path / "set/pairs.jsonl", json.dumps({**PUBLISHED, "id": "1\ud800", "image_0": "a\ud800"}))
    source = open_for_evaluation(tmp_path / "set", "image_pairs")
    assert [(choice.key, choice.images) for choice in source.choices] == [("1\\ud800", ("a\\ud800", "b"))]


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    winoground(naturalbench(tmp_path / "set"))
    with pytest.raises(UserError, match=r"several fit \(examples.jsonl, metadata.json\); name it"):
        open_for_evaluation(tmp_path / "set", "image_pairs")
