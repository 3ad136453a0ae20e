"""What is fuzzed: for each reader a small valid example, the files of it that are mutated, and what must hold."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

import tests.small_sets as sets
from pipeline_lib.base import checkpoints
from pipeline_lib.core import artifacts
from pipeline_lib.core.choices import read_choices
from pipeline_lib.core.paths import MODELS
from pipeline_lib.core.shards import IndexEntry, read_index, read_part
from pipeline_lib.params import check
from pipeline_lib.params.ablations import read_ablations
from pipeline_lib.results.folders import CENTRED, PLAIN, Evaluation, Variant
from pipeline_lib.shard import run as shard
from pipeline_lib.shard.jobs import Job, run_job
from pipeline_lib.shard.leakage import read_trained_on
from pipeline_lib.shard.records import Result
from pipeline_lib.sources import arrow, formats
from pipeline_lib.sources.known_answers import read_known_answers
from pipeline_lib.sources.settings import EvaluationSet
from tests import example_results
from tests.tiny_project import ROOT

KINDS = {
    **dict.fromkeys((".json", ".jsonl", ".jsonlines"), "json"),
    **dict.fromkeys((".tar", ".parquet", ".arrow", ".safetensors"), "bytes"),
    ".yaml": "yaml",
}
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
        section = sets.data(root, format_, **{"parts": {"refine": 1.0}, **values})
        _shard(section)
        _check_rows(formats.open_source(section))

    return read


def shard_evaluation_set(format_: str, path: str = "set", **values: object) -> Callable[[], None]:
    """Return a reader of a set that is evaluated, beside data that are always good."""

    def read() -> None:
        chosen = {"more": EvaluationSet(format=format_, path=path, **values)}
        section = sets.data("data", "jsonl", parts={"refine": 1.0}, evaluation=chosen)
        _shard(section)
        _check_rows(formats.open_evaluation_set(section, "more"))

    return read


def shard_tables() -> None:
    """Write the shards of a set of `datasets`, whose tables a process keeps open."""
    try:
        shard_set("hugging_face")()
    finally:
        arrow.open_table.cache_clear()
        arrow._images.cache_clear()


def _shard(section: sets.DataSettings) -> None:
    with mock.patch.object(shard, "start_workers", _here):
        manifest = sets.write_shards(section, max_bad_share=BAD, max_overlap_share=1.0, max_caption_chars=2000)
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
    """A row of a table is a caption or an image that is used, a caption that is empty, or named as left out."""
    if source.rows is None:
        return
    samples = list(source.all_samples())
    texts = sum(len(sample.captions) + sample.empty_captions for sample in samples)
    counted = {"annotation": texts, "image": len(samples), "file": len(samples), "row": len(samples)}
    counted["line"] = texts if source.facts["format"] == "flickr" else len(samples)
    if source.rows.unit in counted and source.facts["format"] != "jsonl":  # whose lines of one image are one sample
        assert source.rows.read == counted[source.rows.unit] + len(source.rows.bad), (source.rows, counted)


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


def _list(folder: Path) -> object:
    rows = [
        {"image": f"val2014/{n}.jpg", "caption": [f"a {n}", "b"][: 1 + n % 2], "image_id": f"{n}"} for n in range(6)
    ]
    for n in range(6):
        sets.write(folder / f"val2014/{n}.jpg", sets.image_file(n))
    return sets.write(folder / "coco_karpathy_val.json", json.dumps(rows))


def _tabs(folder: Path) -> object:
    for n in range(6):
        sets.write(folder / f"{n}.jpg", sets.image_file(n))
    rows = [f'{n}.jpg\tA "dog" {n}, it runs\n' for n in range(6)]
    return sets.write(folder / "captions.txt", "filepath\ttitle\n" + "".join(rows))


def _coco_cn(folder: Path) -> object:
    names = [f"COCO_val2014_{n:012d}" for n in range(6)]
    for n, name in enumerate(names):
        sets.write(folder / f"val2014/{name}.jpg", sets.image_file(n))
    sets.write(folder / "coco-cn_test.txt", "".join(f"{name}\n" for name in names[:4]))
    rows = [f"{name}#{k}\t一只狗 {n}\n" for n, name in enumerate(names) for k in range(2)]
    return sets.write(folder / "imageid.human-written-caption.txt", "".join(rows))


def _listing(folder: Path) -> object:
    tars = [path for path in sorted(sets.img2dataset(folder).iterdir()) if path.suffix == ".tar"]
    lines = [f"{artifacts.sha256_file(path)}  {path.name}\n" for path in tars]
    return sets.write(folder / "tars.sha256", "".join(lines))


def _saved(folder: Path) -> object:
    import pyarrow as pa

    rows = [{"image": {"bytes": sets.image_file(n), "path": f"{n}.jpg"}, "text": f"caption {n}"} for n in range(4)]
    for split in ("train", "test"):
        table = pa.Table.from_pylist(rows[:2] if split == "train" else rows[2:])
        (folder / split).mkdir(parents=True)
        with (folder / split / "data.arrow").open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        sets.write(folder / split / "state.json", '{"_data_files": [{"filename": "data.arrow"}], "_split": null}')
    return sets.write(folder / "dataset_dict.json", '{"splits": ["train", "test"]}')


def _metadata(folder: Path) -> object:
    for n in range(4):
        sets.write(folder / f"train/{n}.jpg", sets.image_file(n))
        sets.write(folder / f"test/{n}.jpg", sets.image_file(4 + n))
    sets.write(folder / "train/metadata.csv", "file_name,text\n" + "".join(f'{n}.jpg,"a, {n}"\n' for n in range(4)))
    rows = [{"file_name": f"{n}.jpg", "text": f"b {n}"} for n in range(4)]
    return sets.write(folder / "test/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _own_choices(folder: Path) -> object:
    rows = [
        {"image": f"{n % 3}.jpg", "captions": [f"right {n}"], "negatives": ["wrong", f"{n}"], "group": "colour"}
        for n in range(5)
    ]
    for n in range(3):
        sets.write(folder / f"{n}.jpg", sets.image_file(n))
    return sets.write(folder / "choices.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _named_folders(folder: Path) -> object:
    sets.image_folder(folder)
    sets.write(folder / "templates.txt", "a photo of a {}.\na {c}\n")
    return sets.write(folder / "classnames.json", '{"hat": "a hat", "t-shirt": "shirt", "wine_glass": "glass"}')


def _answers(folder: Path) -> object:
    answer = {"value": 0.5, "tolerance": 0.1, "model": "ViT-B-32/openai", "prompts": "e6e4ea39", "num_images": 9}
    return sets.write(folder / "known_answers.json", json.dumps({"a": [answer, answer], "b": answer}))


def _read_answers() -> None:
    chosen = {"more": EvaluationSet(format="jsonl", path="set")}
    for answers in read_known_answers(sets.data("set", "jsonl", evaluation=chosen), "more").values():
        artifacts.canonical_json([answer["value"] + answer["tolerance"] for answer in answers])


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


def _read_scenes() -> None:
    list(islice(formats.open_source(sets.data("set", "scenes")).samples, 20))


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


def _results(folder: Path) -> object:
    example_results.make_project(folder)
    return None


def _read_results() -> None:
    base, refined = (Evaluation(Path("set/data/eval", name)) for name in MODELS)
    for name in base.all_sets:
        for variant in (PLAIN, CENTRED):
            [one.name for each in (base, refined) for one in Variant(each, variant).measures(name)]


def _trained_on(folder: Path) -> object:
    rows = [{"key": f"{n}", "sha256": f"{n:064x}", "pixels": f"{n:032x}"} for n in range(3)]
    return sets.write(folder / "trained_on.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _read_trained_on() -> None:
    for row in read_trained_on(Path("set/trained_on.jsonl")):
        "".join(row.values())


def _weights(folder: Path) -> object:
    folder.mkdir(parents=True)
    tensors = {name: torch.full((2, 3), float(n)) for n, name in enumerate(("a.x", "a.y", "b"))}
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(tensors)}
    for place in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == place}, folder / place)
    return sets.write(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": places}))


def _read_weights() -> None:
    assert all(
        isinstance(one, torch.Tensor) for one in checkpoints.read(Path("set/model.safetensors.index.json")).values()
    )


def _params(folder: Path) -> object:
    return sets.write(folder / "params.yaml", (ROOT / "params.yaml").read_bytes())


def _changes(folder: Path) -> object:
    sets.write(folder / "params.yaml", (ROOT / "params.yaml").read_bytes())
    entries = (
        "a: {sentence: One., changes: {refine.recipe: hycd}}\nb:\n  sentence: Two.\n  changes:\n    refine.seed: 1\n"
    )
    return sets.write(folder / "changes.yaml", entries)


def _read_params() -> None:
    check.check_params(Path("set/params.yaml"))


def _read_changes() -> None:
    read_ablations(Path("set/params.yaml"), Path("set/changes.yaml"))


TARGETS: Mapping[str, Target] = {
    "flickr": Target(sets.flickr, "captions.txt", shard_set("flickr")),
    "tokens": Target(_tokens, "*.token", shard_set("flickr")),
    "bars": Target(_bars, "*.csv", shard_set("flickr")),
    "tabs": Target(_tabs, "*.txt", shard_set("flickr")),
    "coco_cn": Target(
        _coco_cn,
        "*.txt",
        shard_evaluation_set("flickr", "set/imageid.human-written-caption.txt", images=".", split="coco-cn_test.txt"),
    ),
    "list_files": Target(sets.flickr, "val.txt", shard_set("flickr", parts={"val": "val.txt", "refine": 1.0})),
    "coco": Target(sets.coco, "annotations/*", shard_set("coco")),
    "coco_list": Target(_list, "*.json", shard_set("coco")),
    "karpathy": Target(_karpathy, "*.json", shard_set("coco")),
    "jsonl": Target(_own, "*.jsonl", shard_set("jsonl")),
    "docci": Target(sets.docci, "*.jsonlines", shard_set("docci")),
    "sharegpt4v": Target(sets.sharegpt4v, "*.json", shard_set("sharegpt4v")),
    "urban1k": Target(lambda folder: sets.urban1k(folder, count=1), "caption/*", shard_evaluation_set("urban1k")),
    "xm3600": Target(sets.xm3600, "*.jsonl", shard_evaluation_set("xm3600", language="de")),
    "parquet": Target(sets.hugging_face, "data/*", shard_tables),
    "arrow": Target(_saved, "**/*.*", shard_tables),
    "metadata": Target(_metadata, "*/metadata.*", shard_tables),
    "tars": Target(sets.img2dataset, "*.tar", shard_set("webdataset")),
    "tar_list": Target(_listing, "*.sha256", shard_set("webdataset", "set/tars.sha256")),
    "image_folder": Target(_named_folders, "*.*", shard_evaluation_set("image_folder")),
    "clip_benchmark": Target(sets.clip_benchmark, "**/*.*", shard_evaluation_set("clip_benchmark")),
    "known_answers": Target(_answers, "*.json", _read_answers),
    "sugarcrepe": Target(sets.sugarcrepe, "*.json", shard_evaluation_set("caption_choice")),
    "sugarcrepe_pp": Target(
        lambda folder: sets.sugarcrepe(folder, second=True), "*.json", shard_evaluation_set("caption_choice")
    ),
    "own_choices": Target(_own_choices, "*.jsonl", shard_evaluation_set("caption_choice")),
    "winoground": Target(sets.winoground, "*.jsonl", shard_evaluation_set("image_pairs")),
    "naturalbench": Target(sets.naturalbench, "*.json", shard_evaluation_set("image_pairs")),
    "pairs": Target(_pairs, "*.jsonl", shard_evaluation_set("image_pairs")),
    "mmvp": Target(sets.mmvp, "*.csv", shard_evaluation_set("image_pairs")),
    "scenes": Target(sets.openmoji, "index.json", _read_scenes),
    "index": Target(_index, "*.jsonl", _read_index),
    "choices": Target(_choices, "*.jsonl", _read_choices),
    "manifest": Target(_manifest, "manifest.json", _read_manifest),
    "results": Target(_results, "data/eval/*/results.json", _read_results),
    "trained_on": Target(_trained_on, "*.jsonl", _read_trained_on),
    "weights": Target(_weights, "*", _read_weights),
    "params": Target(_params, "params.yaml", _read_params),
    "changes": Target(_changes, "changes.yaml", _read_changes),
}
