"""Each format in its published layout: keys, captions, labels, images; and what a user may get wrong."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import formats as sources
from pipeline_lib.sources.samples import Task, split
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests.small_sets import (
    SHARED,
    clip_benchmark,
    coco,
    data,
    flickr,
    image_folder,
    img2dataset,
    jsonl,
    picture,
    write,
)

ROOT = Path(__file__).parents[2]
CLOTHING = SHARED / "clothing10/test"
FLICKR8K = SHARED / "flickr8k"


def evaluation(root, kind, **changes):
    chosen = EvaluationSet(format=kind, path=root.name, **changes)
    return sources.open_evaluation_set(
        data(".", "coco", evaluation_root=str(root.parent), evaluation={"s": chosen}), "s"
    )


def test_coco(tmp_path):
    source = sources.open_source(data(coco(tmp_path), "coco"))
    samples = list(source.samples)
    assert [s.key for s in samples] == [f"{9 * n + 1:012d}" for n in range(6)]
    assert [len(s.captions) for s in samples] == [5, 6, 7, 5, 6, 7]
    assert samples[1].captions == tuple(f"caption {turn} of 10" for turn in range(6))
    assert [s.image.read() for s in samples] == [picture(n) for n in range(6)]
    assert source.captioned
    assert not source.tasks
    assert source.facts["format"] == "coco"


def test_coco_by_its_json_file_with_images_elsewhere(tmp_path):
    coco(tmp_path)
    shutil.move(tmp_path / "val2017", tmp_path / "annotations/pictures")
    path = tmp_path / "annotations/captions_val2017.json"
    assert len(list(sources.open_source(data(path, "coco", images="pictures")).samples)) == 6
    opened = evaluation(tmp_path / "annotations", "coco", images="pictures")
    assert [s.image.read() for s in opened.samples] == [picture(n) for n in range(6)]


def test_flickr_captions_hold_commas_and_quotes(tmp_path):
    source = sources.open_source(data(flickr(tmp_path), "flickr"))
    samples = list(source.samples)
    assert [s.key for s in samples] == [f"{n}_ab" for n in range(6)]
    assert samples[3].captions == ("A plain caption of 3 .", 'Two men , looking , at "it" 3 .')
    assert samples[3].image.read() == picture(3)
    parts = split(source.samples, {"refine": "train.txt", "val": "val.txt", "eval": 1.0})
    assert {name: [s.key for s in part] for name, part in parts.items()} == {
        "refine": ["0_ab", "1_ab", "2_ab", "3_ab"],
        "val": ["4_ab"],
        "eval": ["5_ab"],
    }


def test_flickr_token_file_with_rows_of_an_image_apart(tmp_path):
    flickr(tmp_path)
    (tmp_path / "captions.txt").unlink()
    rows = [f"{n}_ab.jpg#{turn}\tcaption, {turn} of {n}" for turn in range(5) for n in range(6)]
    write(tmp_path / "Flickr8k.token", "\n".join(rows) + "\n")
    samples = list(sources.open_source(data(tmp_path, "flickr")).samples)
    assert [len(s.captions) for s in samples] == [5] * 6
    assert samples[2].captions[4] == "caption, 4 of 2"


def test_flickr30k_columns_separated_by_bars(tmp_path):
    write(tmp_path / "images/1.jpg", picture(1))
    write(tmp_path / "results.csv", "image_name| comment_number| comment\n1.jpg| 0| One, two .\n1.jpg| 1| Three .\n")
    [sample] = sources.open_source(data(tmp_path, "flickr")).samples
    assert sample.captions == ("One, two .", "Three .")


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the Flickr8k photos are not on this machine")
def test_flickr8k_itself():
    source = sources.open_source(data(FLICKR8K, "flickr"))
    parts = split(source.samples, {"refine": "train.txt", "val": "val.txt"})
    assert {name: len(part) for name, part in parts.items()} == {"refine": 2000, "val": 500}
    assert Counter(len(s.captions) for s in source.samples) == {5: 2500}
    by_key = {s.key: s for s in source.samples}
    assert "Two men , standing on an ice , looking into something covered with a blue tarp ." in (
        by_key["103205630_682ca7285b"].captions
    )


def test_jsonl_with_keys_captions_and_labels(tmp_path):
    rows = [
        {"image": "p/a.png", "captions": ["one", "two"], "label": "dog"},
        {"image": "p/b.v2.png", "caption": "three", "key": "own", "labels": {"class": "cat", "size": "big"}},
    ]
    source = sources.open_source(data(jsonl(tmp_path, rows), "jsonl"))
    first, second = source.samples
    assert (first.key, first.captions, first.labels) == ("p/a", ("one", "two"), {"class": 1})
    assert (second.key, second.captions, second.labels) == ("own", ("three",), {"class": 0, "size": 0})
    assert second.image.read() == picture(1)
    assert {name: task.classnames for name, task in source.tasks.items()} == {"class": ("cat", "dog"), "size": ("big",)}


def test_image_folder_takes_a_class_in_turn(tmp_path):
    opened = evaluation(image_folder(tmp_path / "set", count=2), "image_folder", limit=4)
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
    source = sources.open_source(data(tmp_path, "image_folder"))
    assert source.tasks["class"] == Task(("tench", "goldfish"), ("a {} in the water",))
    assert {s.captions for s in source.samples} == {("a photo of a tench",), ("a photo of a goldfish",)}


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the clothing photos are not on this machine")
def test_clothing10_itself():
    opened = evaluation(CLOTHING, "image_folder")
    samples = list(opened.samples)
    assert len(samples) == 372
    assert {s.labels["class"] for s in samples[:10]} == set(range(10))
    assert opened.tasks["class"].classnames[-2:] == ("skirt", "t-shirt")


def test_webdataset_folder(tmp_path):
    source = sources.open_source(data(img2dataset(tmp_path), "webdataset"))
    assert [tar.path.name for tar in source.tars] == ["00000.tar", "00001.tar"]
    assert [s.key for s in source.samples][:4] == ["000000000", "000000001", "000000002", "000010000"]
    limited = sources.open_source(data(tmp_path, "webdataset", limit=4))
    assert [s.key for s in limited.samples] == [s.key for s in source.samples][:4]
    assert [tar.limit for tar in limited.tars] == [4, 1]


def test_webdataset_by_a_list_of_hashes(tmp_path):
    img2dataset(tmp_path / "far")
    listing = write(tmp_path / "index.txt", f"{'A' * 64}  far/00001.tar\n{'b' * 64} *far/00000.tar\n")
    source = sources.open_source(data(listing, "webdataset"))
    assert [(t.path, t.sha256) for t in source.tars] == [
        (tmp_path / "far/00001.tar", "a" * 64),
        (tmp_path / "far/00000.tar", "b" * 64),
    ]


def test_clip_benchmark_classification(tmp_path):
    opened = evaluation(clip_benchmark(tmp_path / "cifar"), "clip_benchmark")
    assert [tar.path.name for tar in opened.tars] == [f"{n}.tar" for n in range(11)]
    samples = list(opened.samples)
    assert [s.key for s in samples][:3] == ["s0000000", "s0000011", "s0000001"]
    assert [s.labels["class"] for s in samples][:3] == [0, 1, 1]
    assert opened.tasks["class"] == Task(("cat", "hot dog"), ("a photo of a {}.", "art of the {}."))
    assert not opened.captioned


def test_clip_benchmark_retrieval(tmp_path):
    opened = evaluation(clip_benchmark(tmp_path / "set", retrieval=True), "clip_benchmark")
    assert opened.captioned
    assert not opened.tasks
    assert next(iter(opened.samples)).captions == ("first of 0", "second of 0")


def test_openmoji_as_the_default_splits_it():
    params = config.load(ROOT / "params.yaml", DataSettings)
    source = sources.open_source(data(ROOT / params.root, "openmoji"))
    parts = split(source.samples, params.parts)
    assert sum(map(len, parts.values())) >= 1800
    assert len(parts["eval"]) >= 370
    sample = parts["eval"][0]
    assert sample.image.read().startswith(b"\x89PNG")
    assert source.tasks["category"].classnames[sample.labels["category"]] in source.tasks["category"].classnames
    assert len(source.tasks["category"].classnames) == 9
    assert "CC BY-SA" in source.facts["license"]


@pytest.fixture
def no_images(tmp_path):
    """A set of each format without any image."""
    write(tmp_path / "captions.txt", "image,caption\na.jpg,x\n")
    write(tmp_path / "set.jsonl", '{"image": "a.jpg", "caption": "x"}\n')
    write(tmp_path / "annotations/captions_val.json", '{"images": [], "annotations": []}')
    return tmp_path


def test_a_limit_reads_the_first_samples(tmp_path):
    assert len(list(sources.open_source(data(coco(tmp_path), "coco", limit=4)).samples)) == 4


def test_an_evaluation_set_may_be_cut_to_a_list(tmp_path):
    opened = evaluation(flickr(tmp_path / "f"), "flickr", split="val.txt")
    assert [s.key for s in opened.samples] == ["4_ab"]


def _raises(message, root, kind, **changes):
    with pytest.raises(UserError, match=message):
        list(sources.open_source(data(root, kind, **changes)).samples)


def test_a_missing_root(tmp_path):
    _raises(r"data.root: .*nowhere does not exist; it is relative to the current folder$", tmp_path / "nowhere", "coco")


def test_settings_that_a_format_does_not_use(tmp_path):
    _raises("data.images: format image_folder does not use it", image_folder(tmp_path), "image_folder", images="x")
    with pytest.raises(UserError, match=r"data.evaluation.s.split: format webdataset does not use it"):
        evaluation(img2dataset(tmp_path / "w"), "webdataset", split="val.txt")


def test_missing_image_folders_and_captions_files(tmp_path, no_images):
    _raises(r"data.images: no folder val or images/val .* name the image folder", no_images, "coco")
    _raises(r"data.images: no folder pics in", no_images, "flickr", images="pics")
    _raises(r"data.annotations: .*other.txt does not exist", no_images, "flickr", annotations="other.txt")
    (no_images / "captions.txt").unlink()
    _raises(r"data.annotations: which file .* holds the captions\? no captions.txt or", no_images, "flickr")
    write(no_images / "annotations/captions_train.json", "{}")
    _raises(r"several fit \(captions_train.json, captions_val.json\); name it", no_images, "coco")


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
    _raises("captions_val.json: not a COCO captions file", tmp_path, "coco")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg,b\n", "line 1: expected the header `image,caption`, found 'a.jpg,b'"),
        ("", "line 1: expected the header"),
        ("image,caption\na.jpg,one, two\n", "line 2: 3 columns, the header has 2; quote the caption"),
        ("a.jpg#0\tone\nsecond line\n", "line 2: expected `file#0<TAB>caption`"),
    ],
)
def test_what_is_not_flickr(tmp_path, content, message):
    write(tmp_path / "captions.txt", content)
    _raises(f"captions.txt: {message}", tmp_path, "flickr")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"picture": "a.jpg"}', 'line 1: expected {"image"'),
        ('{"image": "a.jpg", "captions": "one"}', "line 1: `key` must be text and `captions` a list"),
        ('{"image": "a.jpg", "caption": "one", "key": 3}', "line 1: `key` must be text"),
        (
            '{"image": "a.jpg", "caption": ["one"]}',
            "line 1: `caption` must be text; a list of texts is called `captions`",
        ),
        ('{"image": "a.jpg", "label": "cat"}', 'no line has captions to train on; write {"image": "a.jpg", "captions"'),
        ('{"image": "a.jpg", "label": 3}', "line 1: `label` must be a class name"),
    ],
)
def test_what_is_not_jsonl(tmp_path, line, message):
    write(tmp_path / "set.jsonl", line + "\n")
    _raises(f"set.jsonl: {message}", tmp_path, "jsonl")


def test_what_is_not_a_folder_per_class(tmp_path):
    image_folder(tmp_path / "test")
    _raises(r"holds 1 folders, expected one per class; did you mean .*test\?", tmp_path, "image_folder")
    write(tmp_path / "test/classnames.txt", "only one\n")
    _raises(r"classnames.txt: 1 names, but .* has 3 class folders", tmp_path / "test", "image_folder")
    write(tmp_path / "test/classnames.txt", "a\nb\nc\n")
    write(tmp_path / "test/templates.txt", "a photo\n")
    _raises(r"template 'a photo' must hold \{\} or \{c\} once", tmp_path / "test", "image_folder")


def test_tars_that_are_missing(tmp_path):
    _raises(r"no \*.tar in", tmp_path, "webdataset")
    _raises(r"line 1: expected `<sha256>  <file.tar>`", write(tmp_path / "i.txt", "00000.tar\n"), "webdataset")
    root = clip_benchmark(tmp_path / "set")
    (root / "test/3.tar").unlink()
    with pytest.raises(UserError, match=r"data.evaluation.s: .*test holds 10 tars, 11 expected"):
        evaluation(root, "clip_benchmark")
    with pytest.raises(UserError, match=r"no \*.tar in .*train$"):
        evaluation(root, "clip_benchmark", split="train")


def test_text_that_is_not_utf8(tmp_path):
    write(tmp_path / "captions.txt", b"image,caption\na.jpg,\xff\n")
    _raises("captions.txt: not readable as captions", tmp_path, "flickr")
    flickr(tmp_path / "f")
    write(tmp_path / "f/train.txt", b"\xff")
    with pytest.raises(UserError, match=r"train.txt: not UTF-8 text"):
        split(sources.open_source(data(tmp_path / "f", "flickr")).samples, {"refine": "train.txt"})


def test_a_coco_file_is_read_once_per_opening_not_per_pass(tmp_path):
    source = sources.open_source(data(coco(tmp_path), "coco"))
    path = tmp_path / "annotations/captions_val2017.json"
    path.write_text(json.dumps({}))
    assert len(list(source.samples)) == len(list(source.samples)) == 6
