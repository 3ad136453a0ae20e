"""Small image-text sets in the layouts in which they are published, written by the tests themselves."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import read_part
from pipeline_lib.shard.run import run
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.formats import open_evaluation_set, open_source
from pipeline_lib.sources.samples import Source
from pipeline_lib.sources.settings import DataSettings, EvaluationSet

TAGS, MMVP_TYPES = ("Object", "Relation"), ("Orientation", "Camera Perspective")
SHARED = Path(__file__).parents[2] / "shared" / "data"


def image_file(number: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    """An image file that no other number has."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 151 % 256))
    ImageDraw.Draw(image).text((1, 1), str(number), fill="white")
    file = io.BytesIO()
    image.convert(mode).save(file, kind)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def openmoji(folder: Path, **numbers: int) -> Path:
    """The default's index with few scenes."""
    index = json.loads((Path(__file__).parents[1] / "data/openmoji/index.json").read_text())
    index["scenes"] = {"seed": 0, "base": 8, "refine": 8, "val": 4, "eval": 6, **numbers}
    write(folder / "index.json", json.dumps(index))
    return folder


def coco(folder: Path, count: int = 6, split: str = "val2017") -> Path:
    """COCO: 5 to 7 captions an image, annotations in another order than images."""
    images = [{"id": 9 * n + 1, "file_name": f"{9 * n + 1:012d}.jpg", "height": 16, "width": 24} for n in range(count)]
    annotations = [
        {"id": 100 * turn + image["id"], "image_id": image["id"], "caption": f"caption {turn} of {image['id']}"}
        for turn in range(7)
        for n, image in reversed(list(enumerate(images)))
        if turn < 5 + n % 3
    ]
    write(folder / f"annotations/captions_{split}.json", json.dumps({"images": images, "annotations": annotations}))
    for n, image in enumerate(images):
        write(folder / split / image["file_name"], image_file(n))
    return folder


def flickr(folder: Path, count: int = 6) -> Path:
    """Flickr8k as its users have it: captions with commas and quotes, list files of parts."""
    rows = ["image,caption"]
    for n in range(count):
        rows += [
            f"{n}_ab.jpg,A plain caption of {n} .",
            f'{n}_ab.jpg,"Two men , looking , at ""it"" {n} ."',
        ]
        write(folder / f"Images/{n}_ab.jpg", image_file(n))
    write(folder / "captions.txt", "\n".join(rows) + "\n")
    write(folder / "train.txt", "".join(f"{n}_ab.jpg\n" for n in range(count - 2)))
    write(folder / "val.txt", f"{count - 2}_ab\n")
    return folder


def jsonl(folder: Path, rows: Sequence[Mapping]) -> Path:
    for n, row in enumerate(rows):
        write(folder / row["image"], image_file(n))
    write(folder / "set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def image_folder(folder: Path, classes: Sequence[str] = ("hat", "t-shirt", "wine_glass"), count: int = 2) -> Path:
    for label, name in enumerate(classes):
        for n in range(count):
            write(folder / name / f"{n}.png", image_file(10 * label + n, "PNG"))
    return folder


def tar(path: Path, members: Mapping[str, bytes | str] | Sequence[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """A tar of regular files by name, or of given headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def img2dataset(folder: Path, shards: int = 2, count: int = 3) -> Path:
    """What img2dataset writes: jpg, json and txt of each key, a parquet and statistics beside each tar."""
    for shard in range(shards):
        members: dict[str, bytes | str] = {}
        for n in range(count):
            key, caption = f"{shard:05d}{n:04d}", f"image {n} of shard {shard}"
            members[f"{key}.jpg"] = image_file(10 * shard + n)
            members[f"{key}.json"] = json.dumps(
                {"caption": caption, "url": "http://x/y.jpg", "key": key, "status": "success", "error_message": None}
            )
            members[f"{key}.txt"] = caption
        tar(folder / f"{shard:05d}.tar", members)
        write(folder / f"{shard:05d}.parquet", b"PAR1")
        write(folder / f"{shard:05d}_stats.json", "{}")
    return folder


def parquet(path: Path, rows: Sequence[Mapping], features: Mapping | None = None, group: int = 2) -> Path:
    """A table as `datasets` writes it: images as structs of bytes and path, its features in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows))
    if features is not None:
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def hugging_face(folder: Path, count: int = 6) -> Path:
    """Parquet as the hub has it: two tables of one split, captions as lists."""
    for part in range(2):
        rows = [
            {"image": {"bytes": image_file(n), "path": f"{n}.jpg"}, "captions": [f"one {n}", f"two {n}"]}
            for n in range(part, count, 2)
        ]
        parquet(folder / f"data/train-{part:05d}-of-00002.parquet", rows)
    return folder


def clip_benchmark(folder: Path, count: int = 12, retrieval: bool = False) -> Path:
    """clip-benchmark's layout; 11 tars, so that the order of their names is not that of their numbers."""
    for n in range(11):
        members: dict[str, bytes | str] = {}
        for key in range(n, count, 11):
            members[f"s{key:07d}.webp"] = image_file(key, "WEBP")
            if retrieval:
                members[f"s{key:07d}.txt"] = f"first of {key}\nsecond of {key}"
            else:
                members[f"s{key:07d}.cls"] = str(key % 2)
        tar(folder / f"test/{n}.tar", members)
    write(folder / "test/nshards.txt", "11")
    if retrieval:
        write(folder / "dataset_type.txt", "retrieval")
    else:
        write(folder / "classnames.txt", "cat\nhot dog\n")
        write(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of the {c}.\n")
    return folder


def sugarcrepe(folder: Path, count: int = 6, second: bool = False) -> Path:
    """SugarCrepe's files: keys with gaps, images in several; with a `second` caption the lists of SugarCrepe++."""
    for name, number in (("add_att", 7), ("swap_obj", 5)):
        rows = {}
        for n in range(number):
            image = f"{n % count:012d}.jpg"
            write(folder.parent / "coco/val2017" / image, image_file(n % count))
            rows[str(3 * n)] = {"filename": image, "caption": f"{name} right {n} ", "negative_caption": f"wrong {n}"}
        if second:
            extra = [{"id": int(key), "caption2": f"also right {key}"} for key in rows]
            rows = [{**more, **row} for more, row in zip(extra, rows.values(), strict=True)]
        write(folder / f"{name}.json", json.dumps(rows))
    return folder


def winoground(folder: Path, count: int = 5) -> Path:
    """Winoground's lines; images are named without their extension."""
    lines = []
    for n in range(count):
        names, texts = [f"ex_{n}_img_{i}" for i in range(2)], [f"a dog {n} on a cat", f"a cat on a dog {n}"]
        for i, name in enumerate(names):
            write(folder / f"images/{name}.png", image_file(2 * n + i, "PNG"))
        row = {
            "id": 10 * n,
            **{f"image_{i}": names[i] for i in range(2)},
            **{f"caption_{i}": texts[i] for i in range(2)},
        }
        lines.append({**row, "tag": "Noun", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": TAGS[n % 2]})
    write(folder / "examples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def naturalbench(folder: Path, count: int = 4) -> Path:
    """NaturalBench-Retrieval's list; one image is in two pairs."""
    rows = []
    for n in range(count):
        names = [f"{n}.jpg", f"{max(n, 1) + 100}.jpg"]
        for name in names:
            write(folder / "images" / name, image_file(int(name[:-4])))
        captions = {f"caption_{i}": f"side {i} of {n}" for i in range(2)}
        rows.append({"index": n, "image_0": names[0], "image_1": names[1], **captions})
    write(folder / "metadata.json", json.dumps(rows))
    return folder


def mmvp(folder: Path, count: int = 8) -> Path:
    """MMVP-VLM's table, its rows in another order than the numbers, and a folder of images per type."""
    rows = [(n, MMVP_TYPES[(n - 1) // 4 % 2], f"a statement, {n}") for n in range(1, count + 1)]
    for number, kind, _ in rows:
        write(folder / "MLLM_VLM Images" / kind / f"{number}.jpg", image_file(number))
    lines = [f'{number},{kind},"{statement}"' for number, kind, statement in reversed(rows)]
    write(folder / "Questions.csv", "\n".join(["Question ID,Type,Statement", *lines]) + "\n")
    return folder


def docci(folder: Path, count: int = 6) -> Path:
    """DOCCI's lines: two of three of the train split; descriptions of 136 words."""
    lines = []
    for n in range(count):
        split = ("train", "train", "test")[n % 3]
        name, text = f"{split}_{n:05d}", " ".join([f"Sentence {n}", *(f"word{k}" for k in range(134))])
        row = {"example_id": name, "split": split, "image_file": f"{name}.jpg", "description": text}
        lines.append(json.dumps(row) + "\n")
        write(folder / f"images/{name}.jpg", image_file(n))
    write(folder / "docci_descriptions.jsonlines", "".join(lines))
    return folder


def sharegpt4v(folder: Path, count: int = 6, name: str = "share-captioner_coco_lcs_sam_1246k_1107.json") -> Path:
    """ShareGPT4V's list, its images in the folders of two sets under the same names."""
    rows = []
    for n in range(count):
        image = f"{('sam/images', 'coco/train2017')[n % 2]}/{n // 2:06d}.jpg"
        talk = [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": f"Image {n}.\nIt is long."}]
        rows.append({"id": f"{n // 2:06d}", "image": image, "conversations": talk})
        write(folder / image, image_file(n))
    write(folder / name, json.dumps(rows))
    return folder


def urban1k(folder: Path, count: int = 12) -> Path:
    """Urban1k's folders; the captions are made last first, and of every third a line follows that is none."""
    for n in range(count, 0, -1):
        write(folder / f"image/{n}.jpg", image_file(n))
        write(folder / f"caption/{n}.txt", f"Caption of {n}." + "\n\nMore." * (n % 3 == 0))
    return folder


def xm3600(folder: Path, count: int = 6) -> Path:
    """XM3600's lines: in German one to three captions an image."""
    lines = []
    for n in range(count):
        key = f"{n:016x}"
        blocks = {
            "en": {"caption": [f"one of {n}", f"two of {n}"], "caption/tokenized": [f"one of {n}", f"two of {n}"]},
            "de": {"caption": [f"Satz {k} zu {n}" for k in range(1 + n % 3)]},
        }
        lines.append(json.dumps({"image/key": key, "image/locale": "de", **blocks}) + "\n")
        write(folder / f"images/{key}.jpg", image_file(n))
    write(folder / "captions.jsonl", "".join(lines))
    return folder


def data(root: Path | str, kind: str, **changes) -> DataSettings:
    """The section `data:`."""
    values = {
        "images": None,
        "annotations": None,
        "parts": {"refine": 0.5, "val": 0.2, "eval": 0.3},
        "limit": None,
        "evaluation_root": ".",
        "evaluation": {},
    }
    return DataSettings(format=kind, root=str(root), **{**values, **changes})


def open_for_evaluation(root: Path, kind: str, **changes) -> Source:
    """The set of `root` as the evaluation set `s`."""
    sets = {"s": EvaluationSet(format=kind, path=root.name, **changes)}
    return open_evaluation_set(data(".", "coco", evaluation_root=str(root.parent), evaluation=sets), "s")


def assert_refused(message: str, root: Path | str, kind: str, **changes) -> None:
    """The set of `root` cannot be opened or read, and `message` fits what is said."""
    with pytest.raises(UserError, match=message):
        list(open_source(data(root, kind, **changes)).samples)


def settings(**changes) -> ShardSettings:
    """The section `shard:`."""
    values = {
        "samples_per_shard": 4,
        "max_image_bytes": 1_000_000,
        "max_image_pixels": 1_000_000,
        "max_caption_chars": 200,
        "max_bad_share": 0.0,
        "max_overlap_share": 0.0,
    }
    return ShardSettings(**{**values, **changes})


def write_shards(
    section: DataSettings,
    target="shards",
    fingerprint="test",
    trained_on=(),
    trains_again=False,
    num_workers=1,
    **limits,
) -> dict:
    """Write `target` and give its manifest; `limits` change the section `shard:`."""
    lines = "".join(json.dumps(dict(zip(("key", "sha256", "pixels"), row, strict=False))) + "\n" for row in trained_on)
    return run(
        section,
        settings(**limits),
        trained_on=write(Path("trained_on.jsonl"), lines),
        trains_again=trains_again,
        target=Path(target),
        fingerprint=fingerprint,
        num_workers=num_workers,
        progress=False,
    )


def images_of(name: str, folder="shards") -> dict[str, bytes]:
    """{key: image file} of a part."""
    part = read_part(Path(folder, name))
    return {e.key: tar.read_image(e) for tar in part.shards for e in tar.samples()}


def listed(name: str, folder="shards") -> list[dict]:
    """The lines of a list beside the parts, such as `quarantine.jsonl`."""
    return [json.loads(line) for line in Path(folder, name).read_text().split("\n") if line]
