"""Where a set lies: which files a format finds there, and what params.yaml may say of it."""

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import open_source
from tests.small_sets import assert_refused, coco, data, flickr, open_for_evaluation, write


@pytest.fixture
def no_images(tmp_path):
    """A set of each format without any image."""
    write(tmp_path / "captions.txt", "image,caption\na.jpg,x\n")
    write(tmp_path / "set.jsonl", '{"image": "a.jpg", "caption": "x"}\n')
    write(tmp_path / "annotations/captions_val.json", '{"images": [], "annotations": []}')
    return tmp_path


def test_a_limit_reads_the_first_samples(tmp_path):
    source = open_source(data(coco(tmp_path), "coco", limit=4, parts={"refine": 1.0}))
    assert [sample.key for sample in source.samples] == [f"{9 * n + 1:012d}" for n in range(4)]


def test_an_evaluation_set_may_be_cut_to_a_list(tmp_path):
    opened = open_for_evaluation(flickr(tmp_path / "f"), "flickr", split="val.txt")
    assert [s.key for s in opened.samples] == ["4_ab"]
    write(tmp_path / "f/val.txt", "4_ab\nnobody.jpg\n")
    with pytest.raises(UserError, match=r"val.txt: 1 of its 2 lines name no sample of the set, such as nobody.jpg"):
        list(open_for_evaluation(tmp_path / "f", "flickr", split="val.txt").samples)
    assert len(list(open_for_evaluation(tmp_path / "f", "flickr", split="val.txt", limit=1).samples)) == 1


UNUSED = {
    "image_folder": ("images", "annotations"),
    "webdataset": ("images", "annotations", "split"),
    "clip_benchmark": ("images",),
    "caption_choice": ("split",),
    "image_pairs": ("split",),
    "scenes": ("images", "annotations"),
    "openmoji": ("images",),
    "jsonl": ("language",),
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in UNUSED.items() for key in keys])
def test_settings_that_a_format_does_not_use(tmp_path, kind, key):
    folder = tmp_path / "set"
    folder.mkdir()
    evaluated = kind in ("clip_benchmark", "openmoji") or key in ("split", "language")
    name = "data.evaluation.s" if evaluated else "data"
    open_set = open_for_evaluation if evaluated else lambda root, kind, **more: open_source(data(root, kind, **more))
    with pytest.raises(UserError, match=rf"^{name}\.{key}: format {kind} does not use it; write null$"):
        open_set(folder, kind, **{key: "x"})


@pytest.mark.parametrize("name", ["a" * 300, "\ud800", "a\0"])
def test_names_that_no_file_can_have_are_those_of_missing_ones(tmp_path, no_images, name):
    """Whatever key of params.yaml, or of a list of evaluation sets, says them."""
    assert_refused("data.root: .* does not exist", tmp_path / name, "flickr")
    assert_refused("data.annotations: .* does not exist", no_images, "flickr", annotations=name)
    assert_refused("data.images: no folder", no_images, "flickr", images=name)
    for kind in ("flickr", "clip_benchmark"):
        with pytest.raises(UserError, match=r"list file .* does not exist|no \*.tar in"):
            list(open_for_evaluation(no_images, kind, split=name).samples)


def test_missing_image_folders_and_captions_files(tmp_path, no_images):
    assert_refused(r"data.images: no folder val or images/val .* name the image folder", no_images, "coco")
    assert_refused(r"data.images: no folder pics in", no_images, "flickr", images="pics")
    assert_refused(r"data.annotations: .*other.txt does not exist", no_images, "flickr", annotations="other.txt")
    (no_images / "captions.txt").unlink()
    assert_refused(r"data.annotations: which file .* holds the captions\? no captions.txt or", no_images, "flickr")
    write(no_images / "annotations/captions_train.json", "{}")
    assert_refused(r"several fit \(captions_train.json, captions_val.json\); name it", no_images, "coco")
