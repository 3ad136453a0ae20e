"""What is fuzzed: for each reader a small valid example, the files of it that are mutated, and what must hold."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tests.small_sets as sets
from pipeline_lib.core import artifacts
from pipeline_lib.core.choices import read_choices
from pipeline_lib.core.shards import IndexEntry, read_index, read_part
from pipeline_lib.params import check
from pipeline_lib.shard import run as shard
from pipeline_lib.shard.jobs import Job, run_job
from pipeline_lib.shard.records import Result
from pipeline_lib.sources import formats
from pipeline_lib.sources.settings import EvaluationSet
from tests.tiny_project import ROOT

KINDS = {".json": "json", ".jsonl": "json", ".yaml": "yaml", ".tar": "bytes"}
BAD = 0.9  # share of bad samples and rows that the shard stage takes


@dataclass(frozen=True)
class Target:
    """One reader."""

    write: Callable[[Path], object]  # a valid example into an empty folder
    files: str  # pattern of the files in it that are mutated
    read: Callable[[], None]  # in that folder: whatever there is to read, and what must hold of it


def kind_of(path: Path) -> str:
    """Return which edits suit a file."""
    return KINDS.get(path.suffix, "text")


# ---- sets: through the whole stage `shard`, in this process ----


class _Here:
    """Workers that are this process."""

    count = 1

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        yield from map(run_job, jobs)


@contextmanager
def _here(_count: int | None = None) -> Iterator[_Here]:
    yield _Here()


def shard_set(format_: str, root: str = "set", **values: object) -> Callable[[], None]:
    """Return a reader that writes the shards of a set and holds their balance."""

    def read() -> None:
        section = sets.data(root, format_, parts={"refine": 1.0}, **values)
        _shard(section)
        _check_rows(formats.open_source(section))

    return read


def shard_evaluation_set(format_: str) -> Callable[[], None]:
    """Return a reader of a set that is evaluated, beside data that are always good."""

    def read() -> None:
        chosen = {"more": EvaluationSet(format=format_, path="set")}
        _shard(sets.data("data", "jsonl", parts={"refine": 1.0}, evaluation=chosen))

    return read


def _shard(section: sets.DataSettings) -> None:
    with mock.patch.object(shard, "start_workers", _here):
        manifest = sets.write_shards(section, max_bad_share=BAD, max_overlap_share=1.0)
    listed = {name: Counter(row["part"] for row in sets.listed(f"{name}.jsonl")) for name in ("quarantine", "filtered")}
    for name in manifest["parts"]:
        part = read_part(Path("shards", name))
        counts = part.manifest["counts"]
        entries = list(part.entries())
        assert counts["read"] == counts["used"] + counts["filtered"] + counts["quarantined"], counts
        assert counts["used"] == len(entries) == part.num_samples, counts
        assert part.num_captions == sum(len(entry.captions) for entry in entries)
        assert counts["quarantined"] == listed["quarantine"][name], (counts, listed)
        assert counts["filtered"] == listed["filtered"][name], (counts, listed)
        for one in part.shards:
            for entry in one.samples():
                one.read_image(entry)
        assert len(part.choices) == part.manifest.get("choices", {}).get("used", 0)
    assert artifacts.verify(Path("shards")) == []


def _check_rows(source: formats.Source) -> None:
    """A row of a table is a caption that is used, one that is empty, or a row that is named as left out."""
    samples = list(source.samples)
    texts = sum(len(sample.captions) + sample.empty_captions for sample in samples)
    if source.rows is not None and source.rows.unit == "annotation":
        assert source.rows.read == texts + len(source.rows.bad), (source.rows, texts)
    if source.rows is not None and source.rows.unit == "image":
        assert source.rows.read == len(samples) + len(source.rows.bad)
    if source.rows is not None and source.facts["format"] == "flickr" and source.rows.unit == "line":
        assert source.rows.read == texts + len(source.rows.bad), (source.rows, texts)


def _own(folder: Path) -> object:
    rows = [
        {"image": "a/0.jpg", "captions": ["a red square", "square"], "label": "cat"},
        {"image": "1.jpg", "caption": "a blue square", "key": "one", "label": "dog"},
        {"image": "2.jpg", "caption": "a \u202egreen square", "labels": {"class": "dog", "size": "big"}},
        {"image": "3.jpg", "captions": ["three"]},
        {"image": "3.jpg", "captions": ["three, again"]},
        *({"image": f"{n}.jpg", "caption": f"number {n}"} for n in range(4, 10)),
    ]
    return sets.jsonl(folder, rows)


def _karpathy(folder: Path) -> object:
    splits = ("train", "restval", "val", "test")
    images = [
        {
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "imgid": n,
            "split": splits[n % 4],
            "sentences": [{"raw": f"{n}"}],
        }
        for n in range(8)
    ]
    for n in range(8):
        sets.write(folder / f"val2014/{n}.jpg", sets.image_file(n))
    return sets.write(folder / "dataset_coco.json", json.dumps({"dataset": "coco", "images": images}))


def _tokens(folder: Path) -> object:
    for n in range(6):
        sets.write(folder / f"Images/{n}.jpg", sets.image_file(n))
    return sets.write(
        folder / "Flickr8k.token", "".join(f"{n}.jpg#{k}\tA child {n} .\n" for n in range(6) for k in range(2))
    )


def _bars(folder: Path) -> object:
    for n in range(6):
        sets.write(folder / f"images/{n}.jpg", sets.image_file(n))
    rows = [f'{n}.jpg| {k}| A "dog" {n} runs {k} .\n' for n in range(6) for k in range(2)]
    return sets.write(folder / "results.csv", "image_name| comment_number| comment\n" + "".join(rows))


def _pairs(folder: Path) -> object:
    rows = [
        {"images": [f"{n}.jpg", f"{n + 1}.jpg"], "captions": [f"text {n}", f"text {n + 1}"], "group": "counting"}
        for n in range(4)
    ]
    for n in range(5):
        sets.write(folder / f"{n}.jpg", sets.image_file(n))
    return sets.write(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _named_folders(folder: Path) -> object:
    sets.image_folder(folder)
    sets.write(folder / "templates.txt", "a photo of a {}.\na {c}\n")
    return sets.write(folder / "classnames.json", '{"hat": "a hat", "t-shirt": "shirt", "wine_glass": "glass"}')


def _with_answers(folder: Path) -> object:
    sets.clip_benchmark(folder)
    return sets.write(folder / "known_answers.json", '{"zero_shot_class_top1": {"value": 0.5, "tolerance": 0.1}}')


# ---- what the stages write ----


def _index(folder: Path) -> object:
    entries = [
        IndexEntry(f"k{n}", f"k{n}.jpg", 512 * n, 100, "ab" * 32, (f"one {n}", "two"), {"class": n}) for n in range(3)
    ]
    return sets.write(folder / "00000.jsonl", "".join(entry.line() for entry in entries))


def _read_index() -> None:
    for entry in read_index(Path("set/00000.jsonl")):
        assert isinstance(entry.offset + entry.size, int)
        "".join([entry.key, entry.member, entry.sha256, *entry.captions])
        assert all(isinstance(label, int) for label in entry.labels.values())


def _choices(folder: Path) -> object:
    rows = [
        '{"captions":["right"],"groups":["a"],"images":["k1"],"key":"1","left_out":"","negatives":["wrong"]}\n',
        '{"captions":["one","two"],"groups":[],"images":["k1","k2"],"key":"2","left_out":"","negatives":[]}\n',
    ]
    return sets.write(folder / "choices.jsonl", "".join(rows))


def _read_choices() -> None:
    for choice in read_choices(Path("set")):
        "".join([choice.key, choice.left_out, *choice.groups, *choice.images, *choice.texts])


def _manifest(folder: Path) -> object:
    sets.write(folder / "a/b.txt", "text")
    sets.write(folder / "c.txt", "more")
    return artifacts.write_manifest(folder, "shard", numbers={"one": [1.5, None, True]}, name="ü")


def _read_manifest() -> None:
    body = artifacts.read_manifest(Path("set"), stage="shard")
    artifacts.digests({"shard": Path("set")})
    artifacts.verify(Path("set"))
    assert artifacts.digest({key: value for key, value in body.items() if key != "digest"}) == body["digest"]


def _params(folder: Path) -> object:
    sets.write(folder / "changes.yaml", (ROOT / "ablations/changes.yaml").read_bytes())
    return sets.write(folder / "params.yaml", (ROOT / "params.yaml").read_bytes())


def _read_params() -> None:
    check.check_params(Path("set/params.yaml"))


TARGETS: Mapping[str, Target] = {
    "flickr": Target(sets.flickr, "*.txt", shard_set("flickr")),
    "tokens": Target(_tokens, "*.token", shard_set("flickr")),
    "bars": Target(_bars, "*.csv", shard_set("flickr")),
    "coco": Target(sets.coco, "annotations/*", shard_set("coco")),
    "karpathy": Target(_karpathy, "*.json", shard_set("coco")),
    "jsonl": Target(_own, "*.jsonl", shard_set("jsonl")),
    "tars": Target(sets.img2dataset, "*.tar", shard_set("webdataset")),
    "image_folder": Target(_named_folders, "*.*", shard_evaluation_set("image_folder")),
    "clip_benchmark": Target(_with_answers, "**/*.*", shard_evaluation_set("clip_benchmark")),
    "sugarcrepe": Target(sets.sugarcrepe, "*.json", shard_evaluation_set("caption_choice")),
    "winoground": Target(sets.winoground, "*.jsonl", shard_evaluation_set("image_pairs")),
    "pairs": Target(_pairs, "*.jsonl", shard_evaluation_set("image_pairs")),
    "mmvp": Target(sets.mmvp, "*.csv", shard_evaluation_set("image_pairs")),
    "index": Target(_index, "*.jsonl", _read_index),
    "choices": Target(_choices, "*.jsonl", _read_choices),
    "manifest": Target(_manifest, "manifest.json", _read_manifest),
    "params": Target(_params, "params.yaml", _read_params),
}
