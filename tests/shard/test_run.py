"""The whole folder: every format end to end, equal bytes on every run, disjoint parts, failures that leave nothing."""

import json
import logging
import tracemalloc
from pathlib import Path

import pytest
import webdataset

from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.shard.set_writer import SetWriter
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.shard.triage import Rules
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import Splitter, split
from pipeline_lib.sources.samples import FileImage, Sample, Samples, Source
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests import small_sets
from tests.small_sets import (
    clip_benchmark,
    coco,
    data,
    flickr,
    image_file,
    image_folder,
    images_of,
    img2dataset,
    jsonl,
    listed,
    tar,
    write,
    write_shards,
)

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def content(folder) -> dict[str, bytes]:
    """Every file below `folder` by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def left_behind() -> list[Path]:
    return [p for p in Path().rglob("*") if p.name.endswith(".tmp") or p.name == "shards"]


# --- formats, end to end ----------------------------------------------------------------------------------------


def evaluation(kind, path, **more) -> DataSettings:
    sets = {"other": EvaluationSet(format=kind, path=path, **more)}
    return data(coco(Path("coco")), "coco", parts={"refine": 1.0}, evaluation=sets)


def test_long_captions_pass_the_default_limit_and_one_beyond_it_is_counted_and_named():
    """DOCCI's 136 words (and twice as many) pass; the manifest counts the image whose description is too long."""
    path = small_sets.docci(Path("docci")) / "docci_descriptions.jsonlines"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["description"] = " ".join([rows[1]["description"]] * 2)
    limit = config.load(Path(__file__).parents[2] / "params.yaml", ShardSettings).max_caption_chars
    rows[3]["description"] = (limit - 4) * "x" + " end"
    rows[4]["description"] = (limit - 3) * "x" + " end"
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    parts = {"refine": "train", "eval": "test"}
    write_shards(data("docci", "docci", parts=parts), max_caption_chars=limit, max_bad_share=0.25)
    part = shards.read_part(Path("shards/refine"))
    assert {entry.key: entry.captions for entry in part.entries()} == {
        row["image_file"][:-4]: (row["description"],) for n, row in enumerate(rows) if n in (0, 1, 3)
    }
    assert part.manifest["counts"] == {"read": 4, "used": 3, "filtered": 0, "quarantined": 1}
    reason = "a caption is longer than shard.max_caption_chars"
    assert listed("quarantine.jsonl") == [{"part": "refine", "key": "train_00004", "reason": reason}]


def test_which_of_the_published_captions_were_taken_stands_in_the_manifest():
    small_sets.xm3600(Path("xm"))
    small_sets.urban1k(Path("urban"))
    sets = {"de": {"format": "xm3600", "path": "xm", "language": "de"}, "urban": {"format": "urban1k", "path": "urban"}}
    chosen = {name: EvaluationSet(**one) for name, one in sets.items()}
    write_shards(data(coco(Path("coco"), count=1), "coco", parts={"eval": 1.0}, evaluation=chosen))
    found = {name: shards.read_part(Path("shards", name)).manifest for name in sets}
    assert found["de"]["source"] == {"format": "xm3600", "language": "de", "captions": "all of each image"}
    assert found["urban"]["source"] == {"format": "urban1k", "captions": "first line", "files_with_more_lines": 4}
    assert {name: (one["num_samples"], one["num_captions"]) for name, one in found.items()} == {
        "de": (6, 12),
        "urban": (12, 12),
    }


def test_coco_and_its_captions():
    write_shards(data(coco(Path("coco")), "coco", parts={"refine": 0.7, "val": 0.3}))
    both = images_of("refine") | images_of("val")
    assert both == {f"{9 * n + 1:012d}": image_file(n) for n in range(6)}
    entries = {e.key: e for part in ("refine", "val") for e in shards.read_part(Path("shards", part)).entries()}
    assert [len(entries[f"{9 * n + 1:012d}"].captions) for n in range(6)] == [5, 6, 7, 5, 6, 7]


def test_flickr_by_its_lists():
    flickr(Path("flickr"))
    write_shards(data("flickr", "flickr", parts={"refine": "train.txt", "val": "val.txt"}))
    assert list(images_of("refine")) == ["0_ab", "1_ab", "2_ab", "3_ab"]
    assert images_of("val") == {"4_ab": image_file(4)}
    [entry] = shards.read_part(Path("shards/val")).entries()
    assert entry.captions == ("A plain caption of 4 .", 'Two men , looking , at "it" 4 .')


def test_jsonl_with_labels():
    rows = [{"image": f"p/{n}.png", "caption": f"c {n}", "label": "ab"[n % 2]} for n in range(3)]
    write_shards(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}))
    part = shards.read_part(Path("shards/refine"))
    assert [(e.key, e.labels) for e in part.entries()] == [(f"p/{n}", {"class": n % 2}) for n in range(3)]
    assert part.tasks["class"]["classnames"] == ["a", "b"]


def test_image_folder_as_an_evaluation_set():
    image_folder(Path("folder"))
    write_shards(evaluation("image_folder", "folder"))
    part = shards.read_part(Path("shards/other"))
    assert images_of("other")["t-shirt/1"] == image_file(11, "PNG")
    assert part.tasks["class"]["classnames"] == ["hat", "t-shirt", "wine glass"]
    assert (part.num_samples, part.num_captions) == (6, 0)


@pytest.mark.parametrize("retrieval", [False, True])
def test_clip_benchmark_sets(retrieval):
    clip_benchmark(Path("cb"), retrieval=retrieval)
    write_shards(evaluation("clip_benchmark", "cb"))
    part = shards.read_part(Path("shards/other"))
    entries = list(part.entries())
    assert images_of("other") == {f"s{key:07d}": image_file(key, "WEBP") for key in range(12)}
    if retrieval:
        assert entries[0].captions == ("first of 0", "second of 0")
        assert part.tasks == {}
    else:
        assert [e.labels for e in entries[:3]] == [{"class": 0}, {"class": 1}, {"class": 1}]
        assert part.tasks["class"]["templates"] == ["a photo of a {}.", "art of the {}."]
        prompts = shards.prompts_digest(("cat", "hot dog"), ("a photo of a {}.", "art of the {}."))
        assert part.tasks["class"]["prompts"] == prompts
    assert part.manifest["source"] == {"format": "clip_benchmark", "folder": "cb"}


def test_an_image_without_a_label_is_quarantined_in_a_set_of_labels():
    """As those of a set whose labels are in .npy files: all of it would be accepted, and nothing measured."""
    clip_benchmark(Path("cb"))
    tar(Path("cb/test/3.tar"), {"s0000003.webp": image_file(3, "WEBP"), "s0000003.npy": b"NUMPY"})
    with pytest.raises(UserError, match=r"1 of the 12 samples of part `other` are bad.*s0000003: no label"):
        write_shards(evaluation("clip_benchmark", "cb"))
    write_shards(evaluation("clip_benchmark", "cb"), max_bad_share=0.1)
    assert listed("quarantine.jsonl") == [{"part": "other", "key": "s0000003", "reason": "no label"}]


def test_the_classes_of_a_shift_are_among_those_of_its_source():
    image_folder(Path("source"))
    image_folder(Path("shift"), classes=("hat", "t-shirt"))
    image_folder(Path("stranger"), classes=("hat", "scarf", "tie"))

    def write_with(path, of="source"):
        sets = {
            "source": EvaluationSet(format="image_folder", path="source"),
            "shift": EvaluationSet(format="image_folder", path=path, shift_of=of),
        }
        write_shards(data(coco(Path("coco")), "coco", parts={"refine": 1.0}, evaluation=sets))

    with pytest.raises(UserError, match=r"shift_of: class `scarf` of `shift` is none of `source` \(2 of 3 are not\)"):
        write_with("stranger")
    with pytest.raises(UserError, match=r"shift.shift_of: `shift` and `refine` have no classification task in common"):
        write_with("shift", of="refine")
    write_with("shift")


def test_tars_of_img2dataset_serve_several_parts_in_place():
    img2dataset(Path("tars"), count=8)
    manifest = write_shards(data("tars", "webdataset", parts={"refine": 0.5, "val": 0.3}))
    parts = {name: shards.read_part(Path("shards", name)) for name in ("refine", "val")}
    for part in parts.values():
        assert part.manifest["in_place"]
        assert [s.path for s in part.shards] == [Path("tars/00000.tar"), Path("tars/00001.tar")]
    found = images_of("refine") | images_of("val")
    expected = {f"{shard:05d}{n:04d}": image_file(10 * shard + n) for shard in range(2) for n in range(8)}
    assert found.items() <= expected.items()
    assert len(found) == parts["refine"].num_samples + parts["val"].num_samples
    assert manifest["counts"]["data"]["filtered"]["in_no_part"] == 16 - len(found)
    splitter = Splitter({"refine": 0.5, "val": 0.3}, Path())
    assert set(images_of("val")) == {key for key in expected if splitter.part_of(key) == "val"}


def test_listed_tars_are_compared_with_their_hashes():
    path = img2dataset(Path("far"), shards=1) / "00000.tar"
    write(Path("list.txt"), f"{artifacts.sha256_file(path)}  far/00000.tar\n")
    write_shards(data("list.txt", "webdataset", parts={"refine": 1.0}))
    write(Path("list.txt"), f"{'0' * 64}  far/00000.tar\n")
    with pytest.raises(UserError, match=r"far/00000.tar: SHA-256 is .*, listed as 0+; fetch it again"):
        write_shards(data("list.txt", "webdataset", parts={"refine": 1.0}))


@pytest.mark.parametrize(
    ("kind", "write_set"),
    [("coco", lambda folder: coco(folder, count=36)), ("webdataset", lambda folder: img2dataset(folder, 4, 9))],
)
def test_a_limit_takes_the_first_samples_of_each_part(kind, write_set):
    """The list names samples at the end of the set, which the first ones of the whole set would miss."""
    write_set(Path("set"))
    parts = {"eval": "eval.txt", "refine": 0.6, "val": 0.3}
    keys = [sample.key for sample in open_source(data("set", kind, parts={"all": 1.0})).samples]
    write(Path("set/eval.txt"), "".join(f"{key}\n" for key in keys[-3:]))
    write_shards(data("set", kind, parts=parts), target="whole")
    write_shards(data("set", kind, parts=parts, limit=4))
    counts = {}
    for part in parts:
        first = list(images_of(part, "whole"))[:4]
        assert list(images_of(part)) == first
        counts[part] = len(first)
    assert counts == {"eval": 3, "refine": 4, "val": 4}


def test_a_limit_counts_broken_samples_of_tars_in_their_part():
    members = {
        f"{n}.{ending}": image_file(n) if ending == "jpg" else "x" for n in range(6) for ending in ("jpg", "txt")
    }
    del members["1.txt"]
    tar(Path("tars/0.tar"), members)
    write_shards(data("tars", "webdataset", parts={"refine": 1.0}, limit=3), max_bad_share=0.5)
    assert list(images_of("refine")) == ["0", "2"]
    assert [line["key"] for line in listed("quarantine.jsonl")] == ["1"]


def test_hostile_members_are_counted_in_the_manifest():
    members = {"a.jpg": image_file(0), "a.txt": "x", "a.pkl": b"cos\nsystem\n(S'false'\ntR.", "../b.jpg": image_file(1)}
    tar(Path("tars/0.tar"), members)
    manifest = write_shards(data("tars", "webdataset", parts={"refine": 1.0}))
    assert manifest["counts"]["data"]["ignored_members"] == {"pickle": 1, "unsafe path": 1}
    assert list(images_of("refine")) == ["a"]


def test_the_log_says_what_is_joined_and_what_is_not_read(caplog):
    clip_benchmark(Path("cb"))
    write(Path("cb/classnames.txt"), "cat\nhot dog\nbird\n")
    rows = [{"image": f"p/{n}.png", "caption": f"c {n}", "label": "ab"[n % 2]} for n in range(6)]
    sets = {"other": EvaluationSet(format="clip_benchmark", path="cb")}
    tar(Path("cb/test/3.tar"), {"s0000003.webp": image_file(3, "WEBP"), "s0000003.cls": "1", "s0000003.jxl": "x"})
    with caplog.at_level(logging.INFO):
        write_shards(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}, evaluation=sets))
    assert "data: begins with set/p/0.png, 'c 0', class a; set/p/1.png, 'c 1', class b; set/p/2.png" in caplog.text
    assert "data.evaluation.other: begins with cb/test/0.tar: s0000000.webp, class cat; " in caplog.text
    assert "data.evaluation.other: no sample of 1 of 3 classes: bird" in caplog.text
    assert "data.evaluation.other: left aside: not read: .jxl (1)" in caplog.text


def test_a_set_without_samples_says_why():
    tar(Path("tars/0.tar"), {f"photo_{n}.v1.{ending}": "x" for n in range(3) for ending in ("jpg", "txt")})
    with pytest.raises(
        UserError, match=r"tars holds no samples: no image in the tar \(its .* dot .*\) \(3\); not read"
    ):
        write_shards(data("tars", "webdataset"))
    for name in "ab":
        write(Path(f"folder/{name}/0.heic"), b"x")
    with pytest.raises(UserError, match=r"folder holds no samples: not read: .heic \(2\)$"):
        write_shards(data("folder", "image_folder"))


@pytest.mark.parametrize(("ending", "content"), [("npy", b"NUMPY"), ("cls", b"0 1"), ("json", b'{"labels": [0, 1]}')])
def test_a_classification_set_without_one_label_is_refused(ending, content):
    """As those of several labels an image are, whatever share may be bad."""
    clip_benchmark(Path("cb"))
    for number in range(11):
        keys = range(number, 12, 11)
        members = [(f"s{k}.{e}", c) for k in keys for e, c in (("webp", image_file(k, "WEBP")), (ending, content))]
        tar(Path(f"cb/test/{number}.tar"), dict(members))
    message = (
        r"holds no samples: cls is '0 1', not the number of one class \(12\)|12 of the 12 samples .* bad.*no label"
    )
    with pytest.raises(UserError, match=message):
        write_shards(evaluation("clip_benchmark", "cb"), max_bad_share=1.0)


ODD_NAMES = (
    "caf\u00e9",
    "cafe\u0301",
    "\U0001f600",
    "UPPER",
    "upper",
    "two words",
    "\u0633\u0644\u0627\u0645",
    "y" * 240,
    "n\udcff",
)


@pytest.mark.parametrize("kind", ["image_folder", "webdataset"])
def test_odd_names_of_files_keep_their_samples_apart(kind):
    """Letters composed or not, emoji, both cases, blanks, right to left, the longest, and bytes that are not UTF-8."""
    for n, name in enumerate(ODD_NAMES):
        write(Path("set") / "ab"[n % 2] / f"{name}.jpg", image_file(n))
    if kind == "webdataset":
        members = [
            (f"{name}.{e}", c) for n, name in enumerate(ODD_NAMES) for e, c in (("jpg", image_file(n)), ("txt", b"x"))
        ]
        tar(Path("set/0.tar"), dict(members))
    write_shards(data("set", kind, parts={"refine": 1.0}))
    readable = [name.replace("\udcff", "\\udcff") for name in ODD_NAMES]
    folders = ["a/", "b/"] if kind == "image_folder" else ["", ""]
    assert images_of("refine") == {f"{folders[n % 2]}{name}": image_file(n) for n, name in enumerate(readable)}


# --- bytes ------------------------------------------------------------------------------------------------------


def test_runs_with_any_number_of_workers_give_equal_bytes():
    section = data(coco(Path("coco"), count=30), "coco", evaluation={})
    image_folder(Path("folder"))
    section = data("coco", "coco", evaluation={"o": EvaluationSet(format="image_folder", path="folder")})
    first = write_shards(section, "one", num_workers=1)
    second = write_shards(section, "two", num_workers=3)
    assert first == second
    assert content("one") == content("two")
    assert artifacts.verify(Path("one")) == []


def test_webdataset_itself_reads_the_tars():
    write_shards(data(coco(Path("coco.v2")), "coco", parts={"refine": 1.0}))
    tars = [str(shard.path) for shard in shards.read_part(Path("shards/refine")).shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [s["jpg"] for s in samples] == [image_file(n) for n in range(6)]
    assert [json.loads(s["json"])["key"] for s in samples] == [f"{9 * n + 1:012d}" for n in range(6)]
    assert [len(json.loads(s["json"])["captions"]) for s in samples] == [5, 6, 7, 5, 6, 7]


def test_sharded_data_is_a_webdataset_source_again():
    """What we write, we read: the tars of one run are the input of another, in place."""
    rows = [{"image": f"a.b/{n}.v2.png", "captions": [f"c {n}", "d"]} for n in range(6)]
    write_shards(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}), "first")
    write_shards(data("first/refine", "webdataset", parts={"refine": 1.0}))
    assert list(images_of("refine").values()) == [image_file(n) for n in range(6)]
    assert [e.captions for e in shards.read_part(Path("shards/refine")).entries()] == [
        (f"c {n}", "d") for n in range(6)
    ]


def test_no_absolute_path_of_this_machine_is_written(tmp_path):
    write_shards(data(coco(Path("coco")), "coco", parts={"refine": 1.0}))
    for name, written in content("shards").items():
        assert str(tmp_path).encode() not in written, name


# --- counts and thresholds --------------------------------------------------------------------------------------


def test_read_is_used_and_filtered_and_quarantined():
    coco(Path("coco"), count=20)
    write(Path("coco/val2017/000000000001.jpg"), b"broken")
    section = data("coco", "coco", parts={"refine": 0.6, "val": 0.2})
    manifest = write_shards(section, max_bad_share=0.5)
    total = 0
    for name in ("refine", "val"):
        facts = shards.read_part(Path("shards", name)).manifest
        counts = facts["counts"]
        assert counts["read"] == counts["used"] + counts["filtered"] + counts["quarantined"]
        assert counts["used"] == facts["num_samples"] == sum(s["num_samples"] for s in facts["shards"])
        total += counts["read"]
    assert total + manifest["counts"]["data"]["filtered"]["in_no_part"] == 20
    [row] = listed("quarantine.jsonl")
    assert (row["key"], row["reason"]) == ("000000000001", "not an image in a known format")


def test_bad_images_above_the_threshold_fail_and_are_named():
    coco(Path("coco"), count=10)
    for n in (0, 3):
        Path(f"coco/val2017/{9 * n + 1:012d}.jpg").unlink()
    section = data("coco", "coco", parts={"refine": 1.0})
    with pytest.raises(
        UserError,
        match=r"data: 2 of the 10 samples of part `refine` are bad, more than shard.max_bad_share allows: "
        r"000000000001: no such file: coco/val2017/000000000001.jpg; 000000000028: no such file",
    ):
        write_shards(section, max_bad_share=0.1)
    assert left_behind() == []
    write_shards(section, max_bad_share=0.2)
    assert len(images_of("refine")) == 8


def test_bad_rows_are_counted_and_named_as_bad_images_are(caplog):
    flickr(Path("flickr"))
    text = Path("flickr/captions.txt").read_text()
    write(Path("flickr/captions.txt"), text + "5_ab.jpg,one, two\n")
    section = data("flickr", "flickr", parts={"refine": 1.0})
    named = "captions.txt: line 14: 3 columns, the header has 2; quote the caption"
    with pytest.raises(UserError, match=rf"data: 1 of the 13 rows of flickr/captions.txt are bad, .*: {named}"):
        write_shards(section, max_bad_share=0.05)
    with caplog.at_level(logging.WARNING):
        manifest = write_shards(section, max_bad_share=0.1)
    assert f"data: 1 of 13 rows left out: {named}" in caplog.text
    assert manifest["counts"]["data"]["rows"] == {"read": 13, "used": 12, "left_out": 1}
    assert shards.read_part(Path("shards/refine")).num_captions == 12
    [row] = listed("quarantine.jsonl")
    assert (row["part"], row["key"]) == (None, "captions.txt: line 14")


def test_a_part_of_bad_samples_only_always_fails():
    coco(Path("coco"), count=3)
    for path in Path("coco/val2017").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="3 of the 3 samples of part `refine` are bad"):
        write_shards(data("coco", "coco", parts={"refine": 1.0}), max_bad_share=1.0)


def test_empty_captions_are_dropped_and_a_sample_without_any_is_quarantined():
    rows = [
        {"image": "0.png", "captions": ["one", " ", ""]},
        {"image": "1.png", "captions": ["", None]},
        {"image": "2.png", "captions": ["two"]},
    ]
    write_shards(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}), max_bad_share=0.5)
    part = shards.read_part(Path("shards/refine"))
    assert [e.captions for e in part.entries()] == [("one",), ("two",)]
    assert part.manifest["dropped_captions"] == 4
    assert listed("quarantine.jsonl") == [{"part": "refine", "key": "1", "reason": "only empty captions"}]


def test_doubled_keys_are_refused_before_anything_is_written():
    rows = [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": "x", "key": "a"}]
    with pytest.raises(UserError, match=r"data: key `a` stands twice: set/a.png and set/b.png"):
        write_shards(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}))
    assert not list(Path(".checkpoints").rglob("*.tar"))


def test_keys_doubled_across_tars_are_refused():
    for name in ("0", "1"):
        tar(Path(f"tars/{name}.tar"), {"a.jpg": image_file(int(name)), "a.txt": "x"})
    with pytest.raises(UserError, match=r"data: key `a` stands twice: tars/0.tar: a.jpg and tars/1.tar: a.jpg"):
        write_shards(data("tars", "webdataset", parts={"refine": 1.0}))


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match=r"data: part `val` is empty; give it a larger share"):
        write_shards(data(coco(Path("coco"), count=2), "coco", parts={"refine": 0.9999, "val": 0.0001}))


def test_a_set_without_samples_is_refused():
    write(Path("set/set.jsonl"), "")
    with pytest.raises(UserError, match=r"^data: the set in set holds no samples$"):
        write_shards(data("set", "jsonl"))
    for name in ("a", "b"):
        Path("folder", name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^data: the set in folder holds no samples$"):
        write_shards(data("folder", "image_folder"))


def test_names_that_meet_or_cannot_be_folders_are_refused():
    with pytest.raises(UserError, match=r"data.evaluation.other: a part of `data.parts` has this name already"):
        write_shards(
            data(coco(Path("coco")), "coco", parts={"other": 1.0}, evaluation=evaluation("coco", "coco").evaluation)
        )
    for name in ("../x", "x" * 300):
        with pytest.raises(UserError, match=f"data: `{name}` cannot name a part"):
            write_shards(data("coco", "coco", parts={name: 1.0}))


@pytest.mark.parametrize("kind", ["flickr", "webdataset"])
def test_a_line_of_a_list_that_names_no_sample_fails(kind):
    """What it should have kept out of training would be shared out; a trial on some samples cannot know."""
    write_set, first, key = (flickr, "4_ab.jpg", "0_ab") if kind == "flickr" else (img2dataset, "000010001.jpg", "0+")
    write_set(Path("set"))
    parts = {"refine": 1.0, "val": "val.txt"}
    write(Path("set/val.txt"), f"{first}\nnobody.jpg\n")
    with pytest.raises(
        UserError, match=f"val.txt: 1 of its 2 lines name no sample .* nobody.jpg; a key is like {key};"
    ):
        write_shards(data("set", kind, parts=parts))
    write_shards(data("set", kind, parts=parts, limit=5))
    write(Path("set/val.txt"), f"{first}\n")
    write_shards(data("set", kind, parts=parts))
    assert list(images_of("val")) == [Path(first).stem]


# --- resumption and memory --------------------------------------------------------------------------------------


def test_a_run_that_failed_keeps_its_finished_shards(caplog):
    coco(Path("coco"), count=12)
    section = data("coco", "coco", parts={"refine": 1.0})
    write_shards(section, "fresh", fingerprint="other")
    last = Path(f"coco/val2017/{9 * 11 + 1:012d}.jpg")
    last.unlink()
    with pytest.raises(UserError, match="1 of the 12"):
        write_shards(section)
    kept = Path(".checkpoints/shard-test/output/refine/00000.tar")
    inode = kept.stat().st_ino
    write(kept.parent / ".00009.tar.1.tmp", b"left by a kill")
    write(kept.parent / "00009.tar", b"of an older plan")
    write(last, image_file(11))
    with caplog.at_level(logging.INFO):
        write_shards(section)
    assert "data: resumed, 2 shards were finished" in caplog.text
    assert Path("shards/refine/00000.tar").stat().st_ino == inode
    assert content("shards") == content("fresh")
    assert not Path(".checkpoints/shard-test").exists()


def test_memory_does_not_grow_with_the_number_of_samples():
    def peak(count: int) -> int:
        samples = Samples(lambda: (Sample(f"k{n}", FileImage("x.jpg"), "jpg", ("c",)) for n in range(count)), Path())
        source = Source(name="data", samples=samples, captioned=True)
        rules = Rules(work=Path("w"), settings=small_sets.settings(samples_per_shard=64), captioned=True, tasks={})
        writer = SetWriter(source=source, splitter=Splitter({"refine": 1.0}, Path()), rules=rules)
        tracemalloc.start()
        assert sum(len(job.samples) for job in writer.jobs()) == count
        writer.check_keys()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small = peak(1_000)
    assert peak(10_000) < small + 9_000 * 64  # bytes: hashes of keys, no samples


def test_the_default_set_is_disjoint_from_what_trains_the_base(tmp_path):
    """The parts of params.yaml, of few scenes: no image stands in two, and none is left out."""
    params = config.load(Path(__file__).parents[2] / "params.yaml", DataSettings)
    section = data(small_sets.openmoji(tmp_path / "openmoji"), "scenes", parts=params.parts)
    source = open_source(section)
    base = split(source.samples, params.parts)["base"]
    trained_on = [(s.key, artifacts.sha256_bytes(s.image.read())) for s in base]
    manifest = write_shards(section, trained_on=trained_on, samples_per_shard=256)
    assert set(manifest["parts"]) == {"refine", "val", "eval"}
    written = sum(n["num_samples"] for n in manifest["numbers"].values())
    assert written + len(base) == len(list(source.samples))
    assert all(n["filtered"] == n["quarantined"] == n["duplicate_images"] == 0 for n in manifest["numbers"].values())
