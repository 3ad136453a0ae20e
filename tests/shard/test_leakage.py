"""Train/test leakage: parts are disjoint by content, what is left out is named, too much of it fails."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.images import open_rgb, pixels_digest
from pipeline_lib.shard import leakage
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests.small_sets import data, image_file, images_of, jsonl, listed, openmoji, tar, write, write_shards

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def doubled(pairs) -> DataSettings:
    """Ten images in lists refine (0-3), val (4-5), eval (6-9); `pairs` of (key, number of an image) replace some."""
    rows = [{"image": f"{n}.png", "caption": f"c {n}"} for n in range(10)]
    jsonl(Path("set"), rows)
    for key, number in pairs:
        write(Path(f"set/{key}.png"), image_file(number))
    for name, keys in {"refine": range(4), "val": range(4, 6), "eval": range(6, 10)}.items():
        write(Path(f"set/{name}.txt"), "".join(f"{key}\n" for key in keys))
    return data("set", "jsonl", parts={"eval": "eval.txt", "val": "val.txt", "refine": "refine.txt"})


def test_evaluated_images_that_were_trained_on_are_excluded_and_counted():
    manifest = write_shards(doubled([(7, 1), (8, 5), (5, 2)]), max_overlap_share=0.5)
    assert list(images_of("refine")) == ["0", "1", "2", "3"]
    assert list(images_of("val")) == ["4"]  # 5 has the image of 2
    assert list(images_of("eval")) == ["6", "8", "9"]  # 7 has that of 1; 8 had that of 5, which is no longer in val
    assert listed("filtered.jsonl") == [
        {"part": "eval", "key": "7", "reason": "the same picture is in refine"},
        {"part": "val", "key": "5", "reason": "the same picture is in refine"},
    ]
    assert manifest["numbers"]["eval"]["filtered"] == 1
    tars = b"".join(p.read_bytes() for p in Path("shards/eval").glob("*.tar"))
    assert image_file(1) not in tars
    hashes = {name: {artifacts.sha256_bytes(data) for data in images_of(name).values()} for name in manifest["parts"]}
    assert not hashes["refine"] & (hashes["val"] | hashes["eval"])
    assert not hashes["val"] & hashes["eval"]
    assert artifacts.verify(Path("shards")) == []


def test_too_many_of_them_fail():
    with pytest.raises(
        UserError, match=r"1 of the 4 images of part `eval` are also in refine \(7\), more than .*\(0.2\)"
    ):
        write_shards(doubled([(7, 1)]), max_overlap_share=0.2)
    assert not [p for p in Path().rglob("*") if p.name.endswith(".tmp") or p.name == "shards"]


def test_nothing_that_the_base_was_trained_on_is_in_any_part():
    section = doubled([])
    digest = artifacts.sha256_bytes(image_file(2))
    with pytest.raises(UserError, match=r"data: `2` of part `refine` is among the images that the base was trained on"):
        write_shards(section, trained_on=[("x", "0" * 64), ("2", digest)], max_overlap_share=1.0)
    write_shards(section, trained_on=[("another key", digest)], max_overlap_share=0.5)
    assert list(images_of("refine")) == ["0", "1", "3"]


def test_a_model_that_was_refined_may_be_refined_on_the_same_images_and_is_evaluated_on_others():
    section = doubled([])
    trained_on = [(str(n), artifacts.sha256_bytes(image_file(n))) for n in (0, 1, 2, 3, 9)]
    write_shards(section, trained_on=trained_on, trains_again=True, max_overlap_share=0.5)
    assert list(images_of("refine")) == ["0", "1", "2", "3"]
    assert list(images_of("eval")) == ["6", "7", "8"]


def photo(number: int, kind: str = "PNG", size: tuple[int, int] = (128, 96), **options) -> bytes:
    """A picture with as much in it as a photo has."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC).resize(size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (photo(1, "WEBP", lossless=True), "the same picture is in refine"),
        (photo(1, "BMP"), "the same picture is in refine"),
        (photo(1, "JPEG", quality=95), "the same picture, encoded anew, is in refine"),
        (photo(1, "JPEG", quality=50), "the same picture, encoded anew, is in refine"),
        (photo(1, "WEBP", quality=80), "the same picture, encoded anew, is in refine"),
    ],
)
def test_the_same_picture_in_another_encoding_is_left_out(other, reason):
    section = doubled([])
    for number in range(4):
        write(Path(f"set/{number}.png"), photo(number))
    write(Path("set/7.png"), other)
    manifest = write_shards(section, max_overlap_share=0.5)
    assert listed("filtered.jsonl") == [{"part": "eval", "key": "7", "reason": reason}]
    assert "similar_to_trained" not in shards.read_part(Path("shards/eval")).manifest
    assert manifest["numbers"]["eval"]["filtered"] == 1


def test_a_smaller_copy_stays_and_is_said(caplog):
    section = doubled([])
    write(Path("set/2.png"), photo(2))
    write(Path("set/7.png"), photo(2, size=(64, 48)))
    write_shards(section)
    assert list(images_of("eval")) == ["6", "7", "8", "9"]
    assert shards.read_part(Path("shards/eval")).manifest["similar_to_trained"] == 1
    assert listed("similar.jsonl") == [{"part": "eval", "key": "7", "similar_to": "refine"}]
    assert "eval: 1 of 4 images are similar to one in refine (7)" in caplog.text


def test_scenes_on_plain_grounds_are_no_copies_of_one_another(caplog):
    """The default's kind of pictures, which share most of their outlines: flat all around, a few small things."""
    openmoji(Path("openmoji"), refine=48, val=16, eval=32)
    write_shards(data("openmoji", "scenes", parts={part: part for part in ("base", "refine", "val", "eval")}))
    assert [row for row in listed("filtered.jsonl") if row["part"]] == []
    assert "similar" not in caplog.text


def test_candidates_equal_a_slow_search():
    """Of 40 outlines, some of them few bits from one of 500; the nearest come first."""
    rng = np.random.default_rng(0)
    trained = rng.integers(0, 2, (500, 128))
    trained[100:120] = trained[0]
    outlines = np.concatenate([trained[:20], rng.integers(0, 2, (20, 128))])
    for row, bits in enumerate(rng.integers(0, 2 * leakage.MOST_BITS, 20)):
        outlines[row, rng.choice(128, bits, replace=False)] ^= 1
    none = np.empty(0, "S16")
    as_words = [np.packbits(bits, axis=1).view(np.uint64) for bits in (trained, outlines)]
    found = dict(leakage.Trained("refine", leakage.Prints(none, none, as_words[0])).candidates(as_words[1]))
    expected = {}
    for row, outline in enumerate(outlines):
        apart = [(int((outline != other).sum()), place) for place, other in enumerate(trained)]
        near = [place for distance, place in sorted(apart) if distance <= leakage.MOST_BITS]
        expected |= {row: near[: leakage.CANDIDATES]} if near else {}
    assert found == expected
    assert 0 < len(found) < 20
    assert len(found[0]) == leakage.CANDIDATES


def test_pixels_that_the_base_was_trained_on_are_found_in_another_encoding():
    section = doubled([])
    row = ("x", "0" * 64, pixels_digest(open_rgb(image_file(2))).hex())
    with pytest.raises(UserError, match=r"1 of the 4 images of part `refine` are also in base \(2\)"):
        write_shards(section, trained_on=[row])


@pytest.mark.parametrize("line", ["[]", '"text"', '{"key": "a"}', '{"key": "a", "sha256": [1]}'])
def test_a_list_that_the_base_did_not_write_is_refused(line):
    path = write(Path("trained_on.jsonl"), f"{line}\n")
    with pytest.raises(UserError, match="not written by the base stage"):
        leakage.read_trained_on(path)


def test_evaluation_sets_lose_trained_images_too_and_report_doubles():
    write(Path("folder/a/x.png"), image_file(1))
    write(Path("folder/a/y.png"), image_file(50, "PNG"))
    write(Path("folder/b/z.png"), image_file(50, "PNG"))
    write(Path("folder/b/e.png"), image_file(6))  # in part `eval`, which trains nothing
    sets = {"other": EvaluationSet(format="image_folder", path="folder")}
    section = DataSettings(**{**{f: getattr(doubled([]), f) for f in DataSettings.__slots__}, "evaluation": sets})
    write_shards(section, max_overlap_share=0.5)
    assert set(images_of("other")) == {"a/y", "b/z", "b/e"}
    assert shards.read_part(Path("shards/other")).manifest["duplicates"] == {"images": 1, "captions": 0}


def test_images_in_tars_in_place_are_left_out_of_the_index():
    tar(Path("tars/0.tar"), {f"k{n}.{e}": c for n in range(6) for e, c in (("jpg", image_file(n % 5)), ("txt", "x"))})
    write(Path("tars/eval.txt"), "k4\nk5\n")
    write_shards(data("tars", "webdataset", parts={"refine": 1.0, "eval": "eval.txt"}), max_overlap_share=0.5)
    assert list(images_of("eval")) == ["k4"]  # k5 has the image of k0
    assert list(images_of("refine")) == ["k0", "k1", "k2", "k3"]


def test_parts_that_share_a_tar_each_lose_what_another_holds():
    """The job of a tar is written again for each part; what an earlier part lost stays lost."""
    images = {"r0": 0, "r1": 1, "r2": 2, "r3": 3, "v0": 0, "v1": 11, "v2": 12}
    images |= {"e0": 1, "e1": 11, "e2": 13, "t0": 2, "t1": 14}
    members = {f"{k}.{e}": c for k, n in images.items() for e, c in (("jpg", image_file(n)), ("txt", "x"))}
    tar(Path("tars/0.tar"), members)
    parts = {"refine": "refine.txt", "val": "val.txt", "eval": "eval.txt", "test": "test.txt"}
    for name in parts:
        write(Path("tars", parts[name]), "".join(f"{key}\n" for key in images if key[0] == name[0]))
    write_shards(data("tars", "webdataset", parts=parts), max_overlap_share=0.7)
    kept = {name: list(images_of(name)) for name in parts}
    assert kept == {"refine": ["r0", "r1", "r2", "r3"], "val": ["v1", "v2"], "eval": ["e2"], "test": ["t1"]}
    for name, number in (("refine", 0), ("val", 1), ("eval", 2), ("test", 1)):
        assert shards.read_part(Path("shards", name)).manifest["counts"]["filtered"] == number
