"""The whole folder: every format end to end, equal bytes on every run, disjoint parts, failures that leave nothing."""

import json
import logging
import tracemalloc
from pathlib import Path

import pytest
import webdataset

from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.shard import overlap
from pipeline_lib.shard import run as shard_writer
from pipeline_lib.shard.jobs import Rules
from pipeline_lib.shard.set_writer import SetWriter
from pipeline_lib.sources import formats as sources
from pipeline_lib.sources.samples import FileImage, Sample, Samples, Source, Splitter, split
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests import small_sets
from tests.small_sets import clip_benchmark, coco, data, flickr, image_folder, img2dataset, jsonl, picture, tar, write


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(section: DataSettings, target="shards", fingerprint="test", trained_on=(), num_workers=1, **limits):
    """The manifest of `target`."""
    lines = "".join(json.dumps({"key": key, "sha256": sha256}) + "\n" for key, sha256 in trained_on)
    return shard_writer.run(
        section,
        small_sets.settings(**limits),
        trained_on=write(Path("trained_on.jsonl"), lines),
        target=Path(target),
        fingerprint=fingerprint,
        num_workers=num_workers,
        progress=False,
    )


def content(folder) -> dict[str, bytes]:
    """Every file below `folder` by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def images(name: str, folder="shards") -> dict[str, bytes]:
    """{key: image file} of a part."""
    part = shards.read_part(Path(folder, name))
    return {e.key: shard.read_image(e) for shard in part.shards for e in shard.samples()}


def listed(name: str) -> list[dict]:
    return [json.loads(line) for line in Path("shards", name).read_text().splitlines()]


def left_behind() -> list[Path]:
    return [p for p in Path().rglob("*") if p.name.endswith(".tmp") or p.name == "shards"]


# --- formats, end to end ----------------------------------------------------------------------------------------


def evaluation(kind, path, **more) -> DataSettings:
    sets = {"other": EvaluationSet(format=kind, path=path, **more)}
    return data(coco(Path("coco")), "coco", parts={"refine": 1.0}, evaluation=sets)


def test_coco_and_its_captions():
    run(data(coco(Path("coco")), "coco", parts={"refine": 0.7, "val": 0.3}))
    both = images("refine") | images("val")
    assert both == {f"{9 * n + 1:012d}": picture(n) for n in range(6)}
    entries = {e.key: e for part in ("refine", "val") for e in shards.read_part(Path("shards", part)).entries()}
    assert [len(entries[f"{9 * n + 1:012d}"].captions) for n in range(6)] == [5, 6, 7, 5, 6, 7]


def test_flickr_by_its_lists():
    flickr(Path("flickr"))
    run(data("flickr", "flickr", parts={"refine": "train.txt", "val": "val.txt"}))
    assert list(images("refine")) == ["0_ab", "1_ab", "2_ab", "3_ab"]
    assert images("val") == {"4_ab": picture(4)}
    [entry] = shards.read_part(Path("shards/val")).entries()
    assert entry.captions == ("A plain caption of 4 .", 'Two men , looking , at "it" 4 .')


def test_jsonl_with_labels():
    rows = [{"image": f"p/{n}.png", "caption": f"c {n}", "label": "ab"[n % 2]} for n in range(3)]
    run(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}))
    part = shards.read_part(Path("shards/refine"))
    assert [(e.key, e.labels) for e in part.entries()] == [(f"p/{n}", {"class": n % 2}) for n in range(3)]
    assert part.tasks["class"]["classnames"] == ["a", "b"]


def test_image_folder_as_an_evaluation_set():
    image_folder(Path("folder"))
    run(evaluation("image_folder", "folder"))
    part = shards.read_part(Path("shards/other"))
    assert images("other")["t-shirt/1"] == picture(11, "PNG")
    assert part.tasks["class"]["classnames"] == ["hat", "t-shirt", "wine glass"]
    assert (part.num_samples, part.num_captions) == (6, 0)


@pytest.mark.parametrize("retrieval", [False, True])
def test_clip_benchmark_sets(retrieval):
    clip_benchmark(Path("cb"), retrieval=retrieval)
    run(evaluation("clip_benchmark", "cb"))
    part = shards.read_part(Path("shards/other"))
    entries = list(part.entries())
    assert images("other") == {f"s{key:07d}": picture(key, "WEBP") for key in range(12)}
    if retrieval:
        assert entries[0].captions == ("first of 0", "second of 0")
        assert part.tasks == {}
    else:
        assert [e.labels for e in entries[:3]] == [{"class": 0}, {"class": 1}, {"class": 1}]
        assert part.tasks["class"]["templates"] == ["a photo of a {}.", "art of the {}."]


def test_tars_of_img2dataset_serve_several_parts_in_place():
    img2dataset(Path("tars"), count=8)
    manifest = run(data("tars", "webdataset", parts={"refine": 0.5, "val": 0.3}))
    parts = {name: shards.read_part(Path("shards", name)) for name in ("refine", "val")}
    for part in parts.values():
        assert part.manifest["in_place"]
        assert [s.path for s in part.shards] == [Path("tars/00000.tar"), Path("tars/00001.tar")]
    found = images("refine") | images("val")
    expected = {f"{shard:05d}{n:04d}": picture(10 * shard + n) for shard in range(2) for n in range(8)}
    assert found.items() <= expected.items()
    assert len(found) == parts["refine"].num_samples + parts["val"].num_samples
    assert manifest["counts"]["data"]["filtered"]["in_no_part"] == 16 - len(found)
    splitter = Splitter({"refine": 0.5, "val": 0.3}, Path())
    assert set(images("val")) == {key for key in expected if splitter.part_of(key) == "val"}


def test_listed_tars_are_compared_with_their_hashes():
    path = img2dataset(Path("far"), shards=1) / "00000.tar"
    write(Path("list.txt"), f"{artifacts.sha256_file(path)}  far/00000.tar\n")
    run(data("list.txt", "webdataset", parts={"refine": 1.0}))
    write(Path("list.txt"), f"{'0' * 64}  far/00000.tar\n")
    with pytest.raises(UserError, match=r"far/00000.tar: SHA-256 is .*, listed as 0+; fetch it again"):
        run(data("list.txt", "webdataset", parts={"refine": 1.0}))


def test_a_limit_on_tars_takes_the_first_samples():
    img2dataset(Path("tars"), shards=3)
    run(data("tars", "webdataset", parts={"refine": 1.0}, limit=4))
    assert list(images("refine")) == ["000000000", "000000001", "000000002", "000010000"]


def test_hostile_members_are_counted_in_the_manifest():
    members = {"a.jpg": picture(0), "a.txt": "x", "a.pkl": b"cos\nsystem\n(S'false'\ntR.", "../b.jpg": picture(1)}
    tar(Path("tars/0.tar"), members)
    manifest = run(data("tars", "webdataset", parts={"refine": 1.0}))
    assert manifest["counts"]["data"]["ignored_members"] == {"pickle": 1, "unsafe path": 1}
    assert list(images("refine")) == ["a"]


# --- bytes ------------------------------------------------------------------------------------------------------


def test_runs_with_any_number_of_workers_give_equal_bytes():
    section = data(coco(Path("coco"), count=30), "coco", evaluation={})
    image_folder(Path("folder"))
    section = data("coco", "coco", evaluation={"o": EvaluationSet(format="image_folder", path="folder")})
    first = run(section, "one", num_workers=1)
    second = run(section, "two", num_workers=3)
    assert first == second
    assert content("one") == content("two")
    assert artifacts.verify(Path("one")) == []


def test_webdataset_itself_reads_the_tars():
    run(data(coco(Path("coco.v2")), "coco", parts={"refine": 1.0}))
    tars = [str(shard.path) for shard in shards.read_part(Path("shards/refine")).shards]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [s["jpg"] for s in samples] == [picture(n) for n in range(6)]
    assert [json.loads(s["json"])["key"] for s in samples] == [f"{9 * n + 1:012d}" for n in range(6)]
    assert [len(json.loads(s["json"])["captions"]) for s in samples] == [5, 6, 7, 5, 6, 7]


def test_sharded_data_is_a_webdataset_source_again():
    """What we write, we read: the tars of one run are the input of another, in place."""
    rows = [{"image": f"a.b/{n}.v2.png", "captions": [f"c {n}", "d"]} for n in range(6)]
    run(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}), "first")
    run(data("first/refine", "webdataset", parts={"refine": 1.0}))
    assert list(images("refine").values()) == [picture(n) for n in range(6)]
    assert [e.captions for e in shards.read_part(Path("shards/refine")).entries()] == [
        (f"c {n}", "d") for n in range(6)
    ]


def test_no_absolute_path_of_this_machine_is_written(tmp_path):
    run(data(coco(Path("coco")), "coco", parts={"refine": 1.0}))
    for name, written in content("shards").items():
        assert str(tmp_path).encode() not in written, name


# --- counts and thresholds --------------------------------------------------------------------------------------


def test_read_is_used_and_filtered_and_quarantined():
    coco(Path("coco"), count=20)
    write(Path("coco/val2017/000000000001.jpg"), b"broken")
    section = data("coco", "coco", parts={"refine": 0.6, "val": 0.2})
    manifest = run(section, max_bad_share=0.5)
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
        run(section, max_bad_share=0.1)
    assert left_behind() == []
    run(section, max_bad_share=0.2)
    assert len(images("refine")) == 8


def test_a_part_of_bad_samples_only_always_fails():
    coco(Path("coco"), count=3)
    for path in Path("coco/val2017").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="3 of the 3 samples of part `refine` are bad"):
        run(data("coco", "coco", parts={"refine": 1.0}), max_bad_share=1.0)


def test_empty_captions_are_dropped_and_a_sample_without_any_is_quarantined():
    rows = [
        {"image": "0.png", "captions": ["one", " ", ""]},
        {"image": "1.png", "captions": ["", None]},
        {"image": "2.png", "captions": ["two"]},
    ]
    run(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}), max_bad_share=0.5)
    part = shards.read_part(Path("shards/refine"))
    assert [e.captions for e in part.entries()] == [("one",), ("two",)]
    assert part.manifest["dropped_captions"] == 4
    assert listed("quarantine.jsonl") == [{"part": "refine", "key": "1", "reason": "only empty captions"}]


def test_doubled_keys_are_refused_before_anything_is_written():
    rows = [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": "x", "key": "a"}]
    with pytest.raises(UserError, match=r"data: key `a` stands twice: set/a.png and set/b.png"):
        run(data(jsonl(Path("set"), rows), "jsonl", parts={"refine": 1.0}))
    assert not list(Path(".checkpoints").rglob("*.tar"))


def test_keys_doubled_across_tars_are_refused():
    for name in ("0", "1"):
        tar(Path(f"tars/{name}.tar"), {"a.jpg": picture(int(name)), "a.txt": "x"})
    with pytest.raises(UserError, match=r"data: key `a` stands twice: tars/0.tar: a.jpg and tars/1.tar: a.jpg"):
        run(data("tars", "webdataset", parts={"refine": 1.0}))


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match=r"data: part `val` is empty; give it a larger share"):
        run(data(coco(Path("coco"), count=2), "coco", parts={"refine": 0.9999, "val": 0.0001}))


def test_a_set_without_samples_is_refused():
    write(Path("set/set.jsonl"), "")
    with pytest.raises(UserError, match=r"^data: the set in set holds no samples$"):
        run(data("set", "jsonl"))
    for name in ("a", "b"):
        Path("folder", name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^data: the set in folder holds no samples$"):
        run(data("folder", "image_folder"))


def test_names_that_meet_or_cannot_be_folders_are_refused():
    with pytest.raises(UserError, match=r"data.evaluation.other: a part of `data.parts` has this name already"):
        run(data(coco(Path("coco")), "coco", parts={"other": 1.0}, evaluation=evaluation("coco", "coco").evaluation))
    with pytest.raises(UserError, match=r"data: `../x` cannot name a part"):
        run(data("coco", "coco", parts={"../x": 1.0}))


def test_names_of_a_list_that_are_not_in_the_set_are_told(caplog):
    flickr(Path("flickr"))
    write(Path("flickr/val.txt"), "4_ab.jpg\nnobody.jpg\n")
    with caplog.at_level(logging.WARNING):
        run(data("flickr", "flickr", parts={"refine": "train.txt", "val": "val.txt"}))
    assert "1 names of the list of part `val` are not in the set" in caplog.text


# --- disjoint parts ---------------------------------------------------------------------------------------------


def doubled(tmp_pairs) -> DataSettings:
    """Ten pictures in lists refine (0-3), val (4-5), eval (6-9); `tmp_pairs` of (key, picture) replace some."""
    rows = [{"image": f"{n}.png", "caption": f"c {n}"} for n in range(10)]
    jsonl(Path("set"), rows)
    for key, number in tmp_pairs:
        write(Path(f"set/{key}.png"), picture(number))
    for name, keys in {"refine": range(4), "val": range(4, 6), "eval": range(6, 10)}.items():
        write(Path(f"set/{name}.txt"), "".join(f"{key}\n" for key in keys))
    return data("set", "jsonl", parts={"eval": "eval.txt", "val": "val.txt", "refine": "refine.txt"})


def test_evaluated_pictures_that_were_trained_on_are_excluded_and_counted():
    manifest = run(doubled([(7, 1), (8, 5), (5, 2)]), max_overlap_share=0.5)
    assert list(images("refine")) == ["0", "1", "2", "3"]
    assert list(images("val")) == ["4"]  # 5 has the picture of 2
    assert list(images("eval")) == ["6", "8", "9"]  # 7 has that of 1; 8 had that of 5, which is no longer in val
    assert listed("filtered.jsonl") == [
        {"part": "eval", "key": "7", "reason": "the same picture is in refine"},
        {"part": "val", "key": "5", "reason": "the same picture is in refine"},
    ]
    assert manifest["numbers"]["eval"]["filtered"] == 1
    tars = b"".join(p.read_bytes() for p in Path("shards/eval").glob("*.tar"))
    assert picture(1) not in tars
    hashes = {name: {artifacts.sha256_bytes(data) for data in images(name).values()} for name in manifest["parts"]}
    assert not hashes["refine"] & (hashes["val"] | hashes["eval"])
    assert not hashes["val"] & hashes["eval"]
    assert artifacts.verify(Path("shards")) == []


def test_too_many_of_them_fail():
    with pytest.raises(
        UserError, match=r"1 of the 4 pictures of part `eval` are also in refine, more than .*\(0.2\).* 7"
    ):
        run(doubled([(7, 1)]), max_overlap_share=0.2)
    assert left_behind() == []


def test_nothing_that_the_base_was_trained_on_is_in_any_part():
    section = doubled([])
    digest = artifacts.sha256_bytes(picture(2))
    with pytest.raises(UserError, match=r"data: `2` of part `refine` is among the images that the base was trained on"):
        run(section, trained_on=[("x", "0" * 64), ("2", digest)], max_overlap_share=1.0)
    run(section, trained_on=[("another key", digest)], max_overlap_share=0.5)
    assert list(images("refine")) == ["0", "1", "3"]


@pytest.mark.parametrize("line", ["[]", '"text"', '{"key": "a"}'])
def test_a_list_that_the_base_did_not_write_is_refused(line):
    path = write(Path("trained_on.jsonl"), f"{line}\n")
    with pytest.raises(UserError, match="not written by the base stage"):
        overlap.read_trained_on(path)


def test_evaluation_sets_lose_trained_pictures_too_and_report_doubles():
    write(Path("folder/a/x.png"), picture(1))
    write(Path("folder/a/y.png"), picture(50, "PNG"))
    write(Path("folder/b/z.png"), picture(50, "PNG"))
    write(Path("folder/b/e.png"), picture(6))  # in part `eval`, which trains nothing
    sets = {"other": EvaluationSet(format="image_folder", path="folder")}
    section = DataSettings(**{**{f: getattr(doubled([]), f) for f in DataSettings.__slots__}, "evaluation": sets})
    run(section, max_overlap_share=0.5)
    assert set(images("other")) == {"a/y", "b/z", "b/e"}
    assert shards.read_part(Path("shards/other")).manifest["duplicates"] == {"images": 1, "captions": 0}


def test_pictures_in_tars_in_place_are_left_out_of_the_index():
    tar(Path("tars/0.tar"), {f"k{n}.{e}": c for n in range(6) for e, c in (("jpg", picture(n % 5)), ("txt", "x"))})
    write(Path("tars/eval.txt"), "k4\nk5\n")
    run(data("tars", "webdataset", parts={"refine": 1.0, "eval": "eval.txt"}), max_overlap_share=0.5)
    assert list(images("eval")) == ["k4"]  # k5 has the picture of k0
    assert list(images("refine")) == ["k0", "k1", "k2", "k3"]


# --- resumption and memory --------------------------------------------------------------------------------------


def test_a_run_that_failed_keeps_its_finished_shards(caplog):
    coco(Path("coco"), count=12)
    section = data("coco", "coco", parts={"refine": 1.0})
    run(section, "fresh", fingerprint="other")
    last = Path(f"coco/val2017/{9 * 11 + 1:012d}.jpg")
    last.unlink()
    with pytest.raises(UserError, match="1 of the 12"):
        run(section)
    kept = Path(".checkpoints/shard-test/output/refine/00000.tar")
    inode = kept.stat().st_ino
    write(kept.parent / ".00009.tar.1.tmp", b"left by a kill")
    write(kept.parent / "00009.tar", b"of an older plan")
    write(last, picture(11))
    with caplog.at_level(logging.INFO):
        run(section)
    assert "data: resumed, 2 shards were finished" in caplog.text
    assert Path("shards/refine/00000.tar").stat().st_ino == inode
    assert content("shards") == content("fresh")
    assert not Path(".checkpoints/shard-test").exists()


def test_memory_does_not_grow_with_the_number_of_samples():
    def peak(count: int) -> int:
        samples = Samples(
            lambda: (Sample(f"k{n}", FileImage("x.jpg"), "jpg", ("c",)) for n in range(count)), Path(), None
        )
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


def test_the_default_set_is_disjoint_from_what_trains_the_base():
    """OpenMoji as params.yaml splits it, cut short: the parts of one split function never meet."""
    root = Path(__file__).parents[2]
    params = config.load(root / "params.yaml", DataSettings)
    section = data(root / params.root, "openmoji", parts=params.parts, limit=150)
    base = split(sources.open_source(section).samples, params.parts)["base"]
    trained_on = [(s.key, artifacts.sha256_bytes(s.image.read())) for s in base]
    manifest = run(section, trained_on=trained_on, samples_per_shard=256)
    assert set(manifest["parts"]) == {"refine", "val", "eval"}
    assert sum(n["num_samples"] for n in manifest["numbers"].values()) + len(base) == 150
    assert all(n["filtered"] == n["quarantined"] == n["duplicate_images"] == 0 for n in manifest["numbers"].values())
