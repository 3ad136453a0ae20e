"""A folder per class: labels in turn, names and templates; and what a user may get wrong."""

import json

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.samples import Task
from tests.small_sets import SHARED, assert_refused, data, image_file, image_folder, open_for_evaluation, write

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


def pictures(root, *names):
    for n, name in enumerate(names):
        write(root / name, image_file(n))
    return root


OTHER_LAYOUTS = {
    "splits": [f"{split}/{name}/0.jpg" for split in ("train", "val2017", "Test") for name in ("cat", "dog")],
    "one split": [*(f"train/{name}/0.jpg" for name in ("cat", "dog")), "docs/readme.txt"],
    "splits beside a class": [*(f"{split}/{name}/0.jpg" for split in ("train", "val") for name in "ab"), "cat/0.jpg"],
    "domains": [f"{domain}/{name}/0.jpg" for domain in ("Art", "Clipart", "Product") for name in ("Alarm", "Bike")],
    "files": [f"0000{shard}/0000{shard}0001.{ending}" for shard in (0, 1) for ending in ("jpg", "txt", "json")],
    "json": [f"{name}/1.{ending}" for name in ("cat", "dog") for ending in ("jpg", "json")],
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
@pytest.mark.parametrize("open_set", [lambda root: open_source(data(root, "image_folder")),
                                      lambda root: open_for_evaluation(root, "image_folder")])  # fmt: skip
def test_folders_that_are_no_classes_are_refused_unless_they_are_named(tmp_path, layout, open_set):
    root = pictures(tmp_path / "set", *OTHER_LAYOUTS[layout])
    expected = "lies beside its image" if layout in ("files", "json") else "hold no images but folders"
    with pytest.raises(UserError, match=expected):
        open_set(root)
    names = {path.name: f"the {path.name}" for path in root.iterdir()}
    write(root / "classnames.json", json.dumps(names))
    assert set(open_set(root).tasks["class"].classnames) == set(names.values())


@pytest.mark.parametrize(
    "names",
    [
        ["train/0.jpg", "test/0.jpg", "dog/0.jpg"],  # a train is a class too
        ["hat/front/0.jpg", "hat/back/0.jpg", "shirt/0.jpg"],
        ["hat/2019/0.jpg", "shirt/2020/0.jpg"],
        ["hat/0.jpg", "hat/0.txt.bak", "shirt/notes.txt", "shirt/0.jpg"],
    ],
)
def test_images_may_lie_deeper_in_their_class(tmp_path, names):
    source = open_source(data(pictures(tmp_path, *names), "image_folder"))
    images = [name for name in names if name.endswith("jpg")]
    assert sorted(sample.key for sample in source.samples) == sorted(name[:-4] for name in images)


def test_what_is_not_read_is_counted_by_ending(tmp_path, caplog):
    endings = ["jpg", "JPG", "jfif", "jpe", "jxl", "heic", "HEIC"]
    root = pictures(
        tmp_path / "set", *(f"{name}/{n}.{e}" for name in "ab" for n, e in enumerate(endings)), "c/LICENSE", "d.png"
    )
    (tmp_path / "elsewhere").mkdir()
    (root / "a/link").symlink_to(tmp_path / "elsewhere")
    source = open_source(data(root, "image_folder"))
    assert [sample.key for sample in source.samples] == ["a/0", "b/0", "a/1", "b/1"]
    assert source.ignored == {
        "not read: .jfif": 2,
        "not read: .jpe": 2,
        "not read: .jxl": 2,
        "not read: .heic": 4,
        "not read: no usual ending": 1,
        "not read: a link to a folder": 1,
        "not read: an image beside the class folders": 1,
    }
    assert "data: no image in 1 of 3 class folders: c" in caplog.text
