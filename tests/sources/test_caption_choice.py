"""SugarCrepe and SugarCrepe++ as published, and choices of one's own; what fits none of them is refused."""

import json

import pytest

from pipeline_lib.core.choices import Choice
from pipeline_lib.core.errors import UserError
from tests.small_sets import image_file, open_for_evaluation, sugarcrepe, write


def own(folder, *rows):
    """A set of one's own, each image there."""
    for n, row in enumerate(rows):
        write(folder / str(row.get("image", "x.png")), image_file(n, "PNG"))
    write(folder / "choices.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_of_sugarcrepes_files_is_one_set_with_a_group_each(tmp_path):
    write(tmp_path / "set/known_answers.json", "{}")
    source = open_for_evaluation(sugarcrepe(tmp_path / "set"), "caption_choice")
    assert [choice.key for choice in source.choices][5:9] == ["add_att/15", "add_att/18", "swap_obj/0", "swap_obj/3"]
    assert source.choices[8] == Choice(
        key="swap_obj/3",
        images=("000000000001",),
        captions=("swap_obj right 1",),
        negatives=("wrong 1",),
        groups=("swap_obj",),
    )
    samples = list(source.samples)
    assert [sample.key for sample in samples] == [f"{n:012d}" for n in range(6)], "one sample, however many choices"
    assert all(not sample.captions for sample in samples), "a wrong text is no caption"
    assert samples[1].image.read() == image_file(1)
    assert not source.captioned


def test_one_file_is_a_set_too(tmp_path):
    sugarcrepe(tmp_path / "set")
    (tmp_path / "set/swap_obj.json").rename(tmp_path / "swap_obj.json")
    source = open_for_evaluation(tmp_path / "swap_obj.json", "caption_choice", images="coco/val2017")
    assert {choice.groups for choice in source.choices} == {("swap_obj",)}
    assert len(list(source.samples)) == len(source.choices) == 5


def test_sugarcrepe_pp_has_two_right_captions(tmp_path):
    source = open_for_evaluation(sugarcrepe(tmp_path / "set", second=True), "caption_choice")
    choice = source.choices[1]
    assert (choice.key, choice.captions) == ("add_att/3", ("add_att right 1", "also right 3"))
    assert (choice.images, choice.negatives) == (("000000000001",), ("wrong 1",))


def test_choices_of_ones_own(tmp_path):
    rows = [
        {"image": "p/a.png", "captions": ["x"], "negatives": ["y", "z"], "group": "colour"},
        {"image": "./p/a.png", "captions": ["x"], "negatives": ["v"], "key": "own", "tags": ["a", "b", "a"]},
    ]
    source = open_for_evaluation(own(tmp_path / "set", *rows), "caption_choice")
    first, second = source.choices
    assert (first.key, first.images, first.groups) == ("choices/1", ("p/a",), ("colour",))
    assert (second.key, second.images, second.groups) == ("own", ("p/a",), ("a", "b"))
    assert len(list(source.samples)) == 1, "two names of one file"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "captions": ["x"]}, r'line 1: expected SugarCrepe\'s "filename"'),
        ({"image": "a.png", "captions": ["x"], "negatives": []}, "line 1: expected SugarCrepe's"),
        ({"image": "a.png", "captions": "x", "negatives": ["y"]}, "line 1: expected SugarCrepe's"),
        ({"filename": "a.png", "caption": "x", "caption2": None, "negative_caption": "y"}, "line 1: expected Sugar"),
        ({"image": "a.png", "captions": ["x"], "negatives": ["y"], "key": 3}, "line 1: `key` and `group` must be text"),
        ({"image": "a.png", "captions": ["x"], "negatives": ["y"], "tags": "t"}, "line 1: .* `tags` a list of texts"),
        ({"image": "a.png", "captions": ["x"], "negatives": ["y"], "group": "a=b"}, "line 1: group 'a=b' names a metr"),
    ],
)
def test_what_is_no_choice(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        open_for_evaluation(own(tmp_path / "set", row), "caption_choice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a.json: not JSON"),
        ("3", "a.json: expected a list or an object, found int"),
        ('{"0": 3}', "a.json: entry 0: expected an object, found int"),
        ('[{"filename": "a.png"}]', "a.json: entry 0: expected SugarCrepe's"),
    ],
)
def test_what_is_no_file_of_choices(tmp_path, text, message):
    write(tmp_path / "set/a.json", text)
    with pytest.raises(UserError, match=message):
        open_for_evaluation(tmp_path / "set", "caption_choice")


def test_a_folder_without_choices_or_images(tmp_path):
    write(tmp_path / "set/readme.txt", "")
    with pytest.raises(UserError, match=r"data.evaluation.s: no \*.json or \*.jsonl in .*set; name the folder"):
        open_for_evaluation(tmp_path / "set", "caption_choice")
    write(tmp_path / "set/a.json", '[{"filename": "a.png", "caption": "x", "negative_caption": "y"}]')
    with pytest.raises(UserError, match=r"data.evaluation.s.images: no folder val2017 or images or .*name the image"):
        open_for_evaluation(tmp_path / "set", "caption_choice")
