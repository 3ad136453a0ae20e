"""Image-text sets as they are published: each format is a function that turns a folder or file into a `Source`.

| format         | on disk                                                                                            |
| -------------- | -------------------------------------------------------------------------------------------------- |
| openmoji       | index.json; pictures and names come from installed packages                                        |
| coco           | annotations/captions_<split>.json and the image folder <split>; key = file name without extension  |
| flickr         | captions.txt (CSV with a header) or *.token (`file#0<TAB>caption`) and the image folder            |
| jsonl          | one object per line: image, caption or captions, optionally key, label or labels                   |
| image_folder   | a folder per class; optionally classnames.txt, templates.txt                                       |
| webdataset     | *.tar with jpg/png/webp, txt, json, read in place; or a `sha256sum` file that lists tars           |
| clip_benchmark | classnames.txt, zeroshot_classification_templates.txt, {train,test}/*.tar, nshards.txt             |

No image is opened here, and a missing one is found where it is read. As training data, image_folder captions each image
"a photo of a <class>"; as an evaluation set it has labels only.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import openmoji
from pipeline_lib.sources.samples import (
    CLASS_TASK,
    TEMPLATES,
    DrawnImage,
    FileImage,
    Sample,
    Samples,
    Source,
    Splitter,
    TarFile,
    Task,
    extension_of,
    make_sample,
    read_lines,
)
from pipeline_lib.sources.settings import DataSettings
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS, list_tar

log = logging.getLogger(__name__)
_WITH_IMAGES = ("coco", "flickr", "jsonl")  # the formats that `images` and `annotations` mean something for


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a set lies, and how to speak of it."""

    name: str
    root: Path
    images: str | None = None
    annotations: str | None = None
    split: str | None = None
    limit: int | None = None
    evaluated_only: bool = False

    @property
    def folder(self) -> Path:
        """The folder that `images`, `annotations` and list files are relative to."""
        return self.root.parent if self.root.is_file() else self.root


def open_source(data: DataSettings) -> Source:
    """The set of `data.root`.

    Raises:
        UserError: It is not there, or not in the format's layout.
    """
    place = _Place(
        name="data", root=Path(data.root), images=data.images, annotations=data.annotations, limit=data.limit
    )
    return _open(data.format, place, "root")


def open_evaluation_set(data: DataSettings, name: str) -> Source:
    """The set `data.evaluation.<name>`.

    Raises:
        UserError: It is not there, or not in the format's layout.
    """
    chosen = data.evaluation[name]
    place = _Place(
        name=f"data.evaluation.{name}",
        root=Path(data.evaluation_root, chosen.path),
        images=chosen.images,
        split=chosen.split,
        limit=chosen.limit,
        evaluated_only=True,
    )
    return _open(chosen.format, place, "path")


def _open(name: str, place: _Place, key: str) -> Source:
    if not place.root.exists():
        raise UserError(f"{place.name}.{key}: {place.root} does not exist; it is relative to the current folder")
    for unused in ("images", "annotations"):
        if name not in _WITH_IMAGES and getattr(place, unused) is not None:
            raise UserError(f"{place.name}.{unused}: format {name} does not use it; write null")
    source = _FORMATS[name](place)
    return dataclasses.replace(source, facts={"format": name, **source.facts})


def _source(place: _Place, make: Callable[[], Iterable[Sample]], **more: Any) -> Source:
    """A `Source` of samples, only those of the list file `split` where one is given."""
    if place.split is not None:
        chosen = Splitter({"chosen": place.split}, place.folder, place.name)
        make = _chosen(make, chosen)
    return Source(name=place.name, samples=Samples(make, place.folder, place.limit), **more)


def _chosen(make: Callable[[], Iterable[Sample]], splitter: Splitter) -> Callable[[], Iterable[Sample]]:
    return lambda: (sample for sample in make() if splitter(sample))


def _find_file(place: _Place, patterns: Sequence[str]) -> Path:
    """The captions file: `root` itself, `annotations`, or the only file below `root` of the format's usual name."""
    if place.root.is_file():
        return place.root
    if place.annotations is not None:
        path = place.folder / place.annotations
        if not path.is_file():
            raise UserError(f"{place.name}.annotations: {path} does not exist")
        return path
    found = sorted({path for pattern in patterns for path in place.folder.glob(pattern)})
    if len(found) != 1:
        what = f"several fit ({', '.join(p.name for p in found[:4])})" if found else f"no {' or '.join(patterns)}"
        key = "path" if place.evaluated_only else "annotations"
        raise UserError(f"{place.name}.{key}: which file of {place.folder} holds the captions? {what}; name it")
    return found[0]


def _find_images(place: _Place, usual: Sequence[str]) -> str:
    """The image folder: `images`, or the first of the format's usual ones that exists."""
    names = usual if place.images is None else [place.images]
    for name in names:
        if (place.folder / name).is_dir():
            return str(place.folder / name)
    raise UserError(f"{place.name}.images: no folder {' or '.join(names)} in {place.folder}; name the image folder")


# --- formats: files ---------------------------------------------------------------------------------------------


def _openmoji(place: _Place) -> Source:
    index = openmoji.check(place.root if place.root.is_file() else place.root / "index.json")
    concepts, rejected = openmoji.concepts()
    names = {
        "category": tuple(sorted({c.category for c in concepts})),
        "subcategory": tuple(sorted({c.subcategory for c in concepts})),
    }
    tasks = {task: Task(classnames, openmoji.TEMPLATES) for task, classnames in names.items()}
    font_digest = index["pictures"]["sha256"]
    samples = [
        Sample(
            concept.key,
            DrawnImage(concept.emoji, font_digest),
            "png",
            concept.captions,
            {task: classnames.index(getattr(concept, task)) for task, classnames in names.items()},
        )
        for concept in concepts
    ]
    facts = {"license": index["pictures"]["license"], "attribution": index["pictures"]["attribution"]}
    return _source(place, lambda: samples, captioned=True, tasks=tasks, rejected=rejected, facts=facts)


def _coco(place: _Place) -> Source:
    path = _find_file(place, ("annotations/captions_*.json", "captions_*.json", "captions.json"))
    split = path.stem.removeprefix("captions_")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[Any, list[Any]] = {identity: [] for identity in files}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a COCO captions file ({type(error).__name__}: {error}); expected "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        ) from None
    folder = _find_images(place, (split, f"images/{split}", f"../{split}", f"../images/{split}", "images"))

    def make() -> Iterator[Sample]:
        for identity, name in files.items():
            key, extension = os.path.splitext(os.path.basename(name))
            image = FileImage(os.path.join(folder, name))
            yield make_sample(key, image, extension[1:].lower(), captions[identity])

    return _source(place, make, captioned=True)


def _flickr(place: _Place) -> Source:
    path = _find_file(place, ("captions.txt", "*.token", "results.csv", "results_*.token"))
    folder = _find_images(place, ("Images", "images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images", "."))
    captions: dict[str, list[str]] = {}
    for name, caption in _flickr_rows(path):
        captions.setdefault(name, []).append(caption)

    def make() -> Iterator[Sample]:
        for name, texts in captions.items():
            key, extension = os.path.splitext(os.path.basename(name))
            yield make_sample(key, FileImage(os.path.join(folder, name)), extension[1:].lower(), texts)

    return _source(place, make, captioned=True)


def _flickr_rows(path: Path) -> Iterator[tuple[str, str]]:
    """(image file, caption) from a CSV with a header, or from `file#0<TAB>caption` lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            file.seek(0)
            yield from _token_rows(path, file) if re.match(r"[^\t]+#\d+\t", first) else _csv_rows(path, file, first)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not readable as captions ({error})") from None


def _token_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        name, tab, caption = line.rstrip("\r\n").partition("\t")
        if tab:
            yield name.rpartition("#")[0] or name, caption
        elif line.strip():
            raise UserError(f"{path}: line {number}: expected `file#0<TAB>caption`, found {line.strip()[:60]!r}")


def _csv_rows(path: Path, file: Iterable[str], first: str) -> Iterator[tuple[str, str]]:
    delimiter = "|" if first.count("|") > first.count(",") else ","
    rows = csv.reader(file, delimiter=delimiter, skipinitialspace=delimiter == "|")
    header = [name.strip().lower() for name in next(rows, [])]
    image, caption = (
        next((header.index(name) for name in names if name in header), -1)
        for names in (("image", "image_name", "filename"), ("caption", "comment"))
    )
    if image < 0 or caption < 0:
        raise UserError(f"{path}: line 1: expected the header `image,caption`, found {first.strip()[:60]!r}")
    for row in rows:
        if len(row) == len(header):
            yield row[image].strip(), row[caption]
        elif row:
            raise UserError(
                f"{path}: line {rows.line_num}: {len(row)} columns, the header has {len(header)}; quote the caption"
            )


def _jsonl(place: _Place) -> Source:
    path = _find_file(place, ("*.jsonl",))
    folder = str(place.folder if place.images is None else _find_images(place, ()))
    names: dict[str, set[str]] = {}
    number, captioned = 0, False
    for number, row in _jsonl_rows(path):
        captioned = captioned or "caption" in row or "captions" in row
        for task, name in _jsonl_labels(path, number, row).items():
            names.setdefault(task, set()).add(name)
    if number and not captioned and not place.evaluated_only:
        raise UserError(f'{path}: no line has captions to train on; write {{"image": "a.jpg", "captions": ["..."]}}')
    tasks = {task: Task(tuple(sorted(found))) for task, found in sorted(names.items())}
    indices = {task: {name: index for index, name in enumerate(tasks[task].classnames)} for task in tasks}

    def make() -> Iterator[Sample]:
        for number, row in _jsonl_rows(path):
            image = row["image"]
            key = row.get("key", os.path.splitext(os.path.basename(image) if os.path.isabs(image) else image)[0])
            captions = row.get("captions", [row["caption"]] if "caption" in row else [])
            if isinstance(row.get("caption"), list):
                raise UserError(f"{path}: line {number}: `caption` must be text; a list of texts is called `captions`")
            if not isinstance(key, str) or not isinstance(captions, list):
                raise UserError(f"{path}: line {number}: `key` must be text and `captions` a list of texts")
            labels = {task: indices[task][name] for task, name in _jsonl_labels(path, number, row).items()}
            yield make_sample(key, FileImage(os.path.join(folder, image)), extension_of(image), captions, labels=labels)

    return _source(place, make, captioned=captioned, tasks=tasks)


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number}: not JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("image"), str):
                raise UserError(f'{path}: line {number}: expected {{"image": "a.jpg", "captions": ["..."]}}')
            yield number, row


def _jsonl_labels(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, str]:
    labels = row.get("labels", {CLASS_TASK: row["label"]} if "label" in row else {})
    if not isinstance(labels, dict) or not all(isinstance(name, str) and name for name in labels.values()):
        raise UserError(f"{path}: line {number}: `label` must be a class name, `labels` {{task: class name}}")
    return labels


def _image_folder(place: _Place) -> Source:
    if not place.root.is_dir():
        raise UserError(f"{place.name}: {place.root} is not a folder; image_folder needs a folder per class")
    folders = sorted(entry.name for entry in os.scandir(place.root) if entry.is_dir() and entry.name[0] != ".")
    if len(folders) < 2:
        raise UserError(
            f"{place.name}: {place.root} holds {len(folders)} folders, expected one per class"
            + (f"; did you mean {place.root / folders[0]}?" if folders else "")
        )
    task = _task(place, folders, "templates.txt")

    def make() -> Iterator[Sample]:
        # One of each class in turn, so that a trial run with `limit` has all of them.
        of_class = [_class_samples(place, index, name, task) for index, name in enumerate(folders)]
        return (sample for turn in zip_longest(*of_class) for sample in turn if sample is not None)

    return _source(place, make, captioned=not place.evaluated_only, tasks={CLASS_TASK: task})


def _class_samples(place: _Place, index: int, folder: str, task: Task) -> Iterator[Sample]:
    """Images below one class folder in the order of their paths; as training data, captioned with the class name."""
    captions = () if place.evaluated_only else (f"a photo of a {task.classnames[index]}",)
    top = str(place.root)
    for parent, folders, files in os.walk(os.path.join(top, folder)):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            if extension_of(name) in IMAGE_EXTENSIONS:
                key = os.path.splitext(os.path.relpath(path, top))[0]
                yield make_sample(key, FileImage(path), extension_of(name), captions, labels={CLASS_TASK: index})


def _task(place: _Place, folders: Sequence[str], templates_file: str) -> Task:
    """Class names from classnames.txt, else from the folders; templates from their file, else ours."""
    path = place.root / "classnames.txt"
    names = read_lines(path) if path.is_file() else [" ".join(re.split(r"[_\s]+", name)).strip() for name in folders]
    if folders and len(names) != len(folders):
        raise UserError(f"{path}: {len(names)} names, but {place.root} has {len(folders)} class folders")
    path = place.root / templates_file
    templates = tuple(re.sub(r"\{c?\}", "{}", line) for line in read_lines(path)) if path.is_file() else TEMPLATES
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"{path}: template {template!r} must hold {{}} or {{c}} once, for the class name")
    return Task(tuple(names), templates)


def _webdataset(place: _Place) -> Source:
    if place.split is not None:
        raise UserError(f"{place.name}.split: format webdataset does not use it; write null")
    tars = _listed_tars(place.root) if place.root.is_file() else [TarFile(p) for p in _sorted_tars(place.root)]
    if not tars:
        raise UserError(f"{place.name}: no *.tar in {place.root}")
    return _tar_source(place, tars, {})


def _clip_benchmark(place: _Place) -> Source:
    split = place.split or "test"
    folder = place.root / split
    tars = _sorted_tars(folder)
    counted = folder / "nshards.txt"
    expected = read_lines(counted) if counted.is_file() else [str(len(tars))]
    if not tars:
        raise UserError(f"{place.name}: no *.tar in {folder}")
    if expected != [str(len(tars))]:
        raise UserError(f"{place.name}: {folder} holds {len(tars)} tars, {' '.join(expected) or 'none'} expected")
    classes = (place.root / "classnames.txt").is_file()
    tasks = {CLASS_TASK: _task(place, (), "zeroshot_classification_templates.txt")} if classes else {}
    return _tar_source(place, [TarFile(path) for path in tars], tasks)


def _tar_source(place: _Place, tars: Sequence[TarFile], tasks: Mapping[str, Task]) -> Source:
    chosen = tuple(tars if place.limit is None else _first_samples(tars, place.limit))

    def make() -> Iterator[Sample]:
        for tar in chosen:
            yield from list_tar(tar.path, tasks, tar.limit).samples

    samples = Samples(make, place.folder, place.limit)
    return Source(name=place.name, samples=samples, captioned=not tasks, tasks=tasks, tars=chosen)


def _first_samples(tars: Iterable[TarFile], limit: int) -> Iterator[TarFile]:
    """As many tars as the first `limit` samples fill, the last of them cut."""
    for tar in tars:
        if limit <= 0:
            return
        yield TarFile(tar.path, tar.sha256, limit)
        listing = list_tar(tar.path, limit=limit)
        limit -= len(listing.samples) + len(listing.rejected)


def _sorted_tars(folder: Path) -> list[Path]:
    """The tars of a folder, numbers in names by value: 2.tar before 10.tar."""
    found = list(folder.glob("*.tar")) if folder.is_dir() else []
    return sorted(found, key=lambda path: [part.zfill(20) for part in re.findall(r"\d+|\D+", path.name)])


def _listed_tars(path: Path) -> list[TarFile]:
    """Tars of a `sha256sum` listing, relative to its folder."""
    tars = []
    for number, line in enumerate(read_lines(path), 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not match:
            raise UserError(f"{path}: line {number}: expected `<sha256>  <file.tar>` as sha256sum prints it")
        tars.append(TarFile(path.parent / match[2], match[1].lower()))
    return tars


_FORMATS: Mapping[str, Callable[[_Place], Source]] = {
    "openmoji": _openmoji,
    "coco": _coco,
    "flickr": _flickr,
    "jsonl": _jsonl,
    "image_folder": _image_folder,
    "webdataset": _webdataset,
    "clip_benchmark": _clip_benchmark,
}
