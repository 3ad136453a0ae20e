"""Karpathy's splits: images, captions and the set's own splits by either format; and what a user may get wrong."""

import json
from collections import Counter

import pytest

from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import assert_refused, data, image_file, open_for_evaluation, write

SPLITS = ("train", "restval", "val", "test")


def karpathy(folder, count=12, filepath="val2014", name="dataset_coco.json", **more):
    images = []
    for n in range(count):
        image = {"filename": f"{n:03d}.jpg", "split": SPLITS[n % 4], "imgid": n}
        image["sentences"] = [{"raw": f"caption {k} of {n}", "tokens": []} for k in range(5)]
        images.append(image | ({"filepath": filepath} if filepath else {}))
        write(folder / filepath / image["filename"], image_file(n))
    write(folder / name, json.dumps({"dataset": "coco", "images": images, **more}))
    return folder


def test_the_splits_are_the_sets_own(tmp_path):
    source = open_source(data(karpathy(tmp_path), "coco"))
    parts = split(source.samples, {"val": "val", "eval": "test", "refine": 1.0})
    assert {name: [s.key for s in part] for name, part in parts.items()} == {
        "val": ["002", "006", "010"],
        "eval": ["003", "007", "011"],
        "refine": ["000", "001", "004", "005", "008", "009"],
    }
    for n, sample in enumerate(source.samples):
        assert sample.captions == tuple(f"caption {k} of {n}" for k in range(5))
        assert sample.image.read() == image_file(n)


@pytest.mark.parametrize("kind", ["coco", "flickr"])
def test_both_formats_find_it_where_there_is_no_file_of_their_own(tmp_path, kind):
    name = {"coco": "dataset_coco.json", "flickr": "dataset_flickr30k.json"}[kind]
    folder = karpathy(tmp_path / "set", filepath="", name=name)
    assert Counter(s.split for s in open_source(data(folder, kind, images=".")).samples) == dict.fromkeys(SPLITS, 3)
    assert [s.key for s in open_for_evaluation(folder, kind, split="test", images=".").samples] == ["003", "007", "011"]


def test_entries_that_are_not_of_the_form_are_left_out(tmp_path):
    karpathy(tmp_path)
    content = json.loads((tmp_path / "dataset_coco.json").read_text())
    content["images"][5]["filename"] = "../../005.jpg"
    del content["images"][6]["sentences"][2]["raw"]
    write(tmp_path / "dataset_coco.json", json.dumps(content))
    source = open_source(data(tmp_path, "coco"))
    assert len(list(source.samples)) == 10
    assert [number for number, _ in source.rows.bad] == [6, 7]


def test_what_is_of_two_forms_or_of_none_is_refused(tmp_path):
    assert_refused("holds `annotations` as COCO's .* and `sentences`", karpathy(tmp_path / "a", annotations=[]), "coco")
    write(tmp_path / "b/dataset_flickr8k.json", "{}")
    assert_refused("not one of Karpathy's files", tmp_path / "b", "flickr")
    assert_refused("data.images: no folder .* name the image folder", karpathy(tmp_path / "c"), "coco", images="pics")
    for number, name in enumerate(["a" * 300, "\ud800", "\0"]):
        content = {"images": [{"filepath": name, "filename": "a.jpg", "sentences": [{"raw": "x"}]}]}
        write(tmp_path / f"{number}/dataset_coco.json", json.dumps(content))
        assert_refused("no folder .* name the image folder|expected {", tmp_path / str(number), "coco")
