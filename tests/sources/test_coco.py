"""COCO's layout: keys, captions and images; and what a user may get wrong."""

import json
import shutil

import pytest

from pipeline_lib.sources.formats import open_source
from tests.small_sets import assert_refused, coco, data, image_file, open_for_evaluation, write


def test_coco(tmp_path):
    source = open_source(data(coco(tmp_path), "coco"))
    samples = list(source.samples)
    assert [s.key for s in samples] == [f"{9 * n + 1:012d}" for n in range(6)]
    assert [len(s.captions) for s in samples] == [5, 6, 7, 5, 6, 7]
    assert samples[1].captions == tuple(f"caption {turn} of 10" for turn in range(6))
    assert [s.image.read() for s in samples] == [image_file(n) for n in range(6)]
    assert source.captioned
    assert not source.tasks
    assert source.facts["format"] == "coco"


def test_coco_by_its_json_file_with_images_elsewhere(tmp_path):
    coco(tmp_path)
    shutil.move(tmp_path / "val2017", tmp_path / "annotations/photos")
    path = tmp_path / "annotations/captions_val2017.json"
    assert len(list(open_source(data(path, "coco", images="photos")).samples)) == 6
    opened = open_for_evaluation(tmp_path / "annotations", "coco", images="photos")
    assert [s.image.read() for s in opened.samples] == [image_file(n) for n in range(6)]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"image": "a.jpg"}\n{"image": "b.jpg"}',
        "[]",
        '{"images": []}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
    ],
)
def test_what_is_not_coco(tmp_path, content):
    """Said before anything is said of the images, which another format keeps elsewhere."""
    write(tmp_path / "captions_val.json", content)
    assert_refused("captions_val.json: not a COCO captions file", tmp_path, "coco")


def test_a_coco_file_is_read_once_per_opening_not_per_pass(tmp_path):
    source = open_source(data(coco(tmp_path), "coco"))
    path = tmp_path / "annotations/captions_val2017.json"
    path.write_text(json.dumps({}))
    assert len(list(source.samples)) == len(list(source.samples)) == 6
