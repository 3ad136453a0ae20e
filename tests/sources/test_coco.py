"""COCO's layout: keys, captions and images; and what a user may get wrong."""

import gzip
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


def read(folder, content, name="annotations/captions_val2017.json", **changes):
    """{key: captions}, and the rows, of a set whose captions file is replaced."""
    text = json.dumps(content)
    write(folder / name, gzip.compress(text.encode()) if name.endswith(".gz") else "\ufeff" + text)
    source = open_source(data(folder, "coco", **changes))
    return {sample.key: sample.captions for sample in source.samples}, source.rows


IMAGES = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
ANNOTATIONS = [{"image_id": n, "caption": f"caption of {n}"} for n in range(3)]


def test_annotations_of_unknown_images_are_left_out_and_named(tmp_path):
    coco(tmp_path)
    odd = [{"image_id": 30, "caption": "x"}, {"image_id": "1", "caption": "x"}, {"image_id": [1], "caption": "x"}, 7]
    found, rows = read(tmp_path, {"images": IMAGES, "annotations": [*ANNOTATIONS, *odd]})
    assert found == {str(n): (f"caption of {n}",) for n in range(3)}
    assert [reason for _, reason in rows.bad] == [
        "no image of the file has the id 30",
        "no image of the file has the id '1'",
        "no image of the file has the id [1]",
        'expected {"image_id", "caption"}',
    ]
    assert rows.read == 7
    write(tmp_path / "annotations/captions_val2017.json", json.dumps({"images": IMAGES, "annotations": odd[:1]}))
    assert_refused("captions_val2017.json: annotation 1: no image of the file has the id 30", tmp_path, "coco")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"id": 1, "file_name": "9.jpg"}, "two images have the id 1: 1.jpg and 9.jpg"),
        ({"id": 9, "file_name": "1.jpg"}, "1.jpg is the file of two images: 1 and 9"),
        ({"id": 9, "file_name": "../../9.jpg"}, r"'../../9.jpg' is no file below .*val2017; name the folder"),
    ],
)
def test_images_that_captions_could_be_joined_to_wrongly_are_refused(tmp_path, more, message):
    content = {"images": [*IMAGES, more], "annotations": ANNOTATIONS}
    write(coco(tmp_path) / "annotations/captions_val2017.json", json.dumps(content))
    assert_refused(message, tmp_path, "coco")


@pytest.mark.parametrize("name", ["annotations/captions_val2017.json", "annotations/captions_val2017.json.gz"])
def test_a_byte_order_mark_and_gzip(tmp_path, name):
    coco(tmp_path)
    (tmp_path / "annotations/captions_val2017.json").unlink()
    assert len(read(tmp_path, {"images": IMAGES, "annotations": ANNOTATIONS}, name)[0]) == 3


def test_a_list_of_images_and_captions(tmp_path):
    """As coco_karpathy_train.json has a caption in each entry, and coco_karpathy_val.json all of them."""
    coco(tmp_path)
    rows = [
        {"image": f"val2017/{n}.jpg", "caption": f"{k} of {n}", "image_id": f"coco_{n}"} for n in (2, 1) for k in (0, 1)
    ]
    rows += [{"image": "val2017/3.jpg", "caption": ["0 of 3", "1 of 3"], "image_id": 3}, {"image": "val2017/4.jpg"}]
    rows += [{"image": "val2017/5.jpg", "caption": "x", "image_id": 3}]
    found, counted = read(tmp_path, rows, "coco_karpathy_train.json", annotations="coco_karpathy_train.json")
    assert found == {str(n): (f"0 of {n}", f"1 of {n}") for n in (2, 1, 3)}
    assert [number for number, _ in counted.bad] == [6, 7]
    assert "its image_id 3 is that of val2017/3.jpg" in counted.bad[1][1]
    none = [{"image": f"val2017/{n}.jpg", "caption": f"0 of {n}", "image_id": None} for n in (1, 2)]
    odd = [{"image": f"val2017/{n}.jpg", "caption": f"1 of {n}", "image_id": [7]} for n in (1, 2)]
    found, counted = read(tmp_path, [*none, *odd], "coco_karpathy_val.json", annotations="coco_karpathy_val.json")
    assert found == {"1": ("0 of 1", "1 of 1"), "2": ("0 of 2",)}
    assert counted.bad[0][1] == "its image_id [7] is that of val2017/1.jpg"
