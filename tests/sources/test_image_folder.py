"""A folder per class: labels in turn, names and templates; and what a user may get wrong."""

import pytest

from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.samples import Task
from tests.small_sets import SHARED, assert_refused, data, image_folder, open_for_evaluation, write

CLOTHING = SHARED / "clothing10/test"


def test_image_folder_takes_a_class_in_turn(tmp_path):
    opened = open_for_evaluation(image_folder(tmp_path / "set", count=2), "image_folder", limit=4)
    samples = list(opened.samples)
    assert [s.key for s in samples] == ["hat/0", "t-shirt/0", "wine_glass/0", "hat/1"]
    assert [s.labels["class"] for s in samples] == [0, 1, 2, 0]
    assert [s.captions for s in samples] == [()] * 4
    assert opened.tasks["class"].classnames == ("hat", "t-shirt", "wine glass")
    assert not opened.captioned


def test_image_folder_with_names_and_templates_of_its_own(tmp_path):
    image_folder(tmp_path, classes=("n01", "n02"))
    write(tmp_path / "classnames.txt", "tench\ngoldfish\n")
    write(tmp_path / "templates.txt", "a {} in the water\n")
    source = open_source(data(tmp_path, "image_folder"))
    assert source.tasks["class"] == Task(("tench", "goldfish"), ("a {} in the water",))
    assert {s.captions for s in source.samples} == {("a photo of a tench",), ("a photo of a goldfish",)}


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the clothing photos are not on this machine")
def test_clothing10_itself():
    opened = open_for_evaluation(CLOTHING, "image_folder")
    samples = list(opened.samples)
    assert len(samples) == 372
    assert {s.labels["class"] for s in samples[:10]} == set(range(10))
    assert opened.tasks["class"].classnames[-2:] == ("skirt", "t-shirt")


def test_what_is_not_a_folder_per_class(tmp_path):
    image_folder(tmp_path / "test")
    assert_refused(r"holds 1 folders, expected one per class; did you mean .*test\?", tmp_path, "image_folder")
    write(tmp_path / "test/classnames.txt", "only one\n")
    assert_refused(r"classnames.txt: 1 names, but .* has 3 class folders", tmp_path / "test", "image_folder")
    write(tmp_path / "test/classnames.txt", "a\nb\nc\n")
    write(tmp_path / "test/templates.txt", "a photo\n")
    assert_refused(r"template 'a photo' must hold \{\} or \{c\} once", tmp_path / "test", "image_folder")
