"""Sets in the layouts of Hugging Face's `datasets`: parquet, saved to disk, and image folders with their metadata.

    data/my_set/
        data/train-00000-of-00001.parquet    as the hub has them; also train/0000.parquet or train.parquet
        data/test-00000-of-00001.parquet     columns image (bytes and path, or bytes) and text, caption, captions, ...

    data/my_set/                             dataset.save_to_disk("data/my_set")
        dataset_dict.json                    {"splits": ["train", "test"]}; a single set has no splits
        train/state.json, train/data-00000-of-00001.arrow

    data/my_set/                             `imagefolder`
        train/metadata.csv                   file_name,text; or metadata.jsonl, metadata.parquet
        train/0001.jpg

The column of captions is `text`, `caption`, `captions`, `sentences`, `title` or all of `caption_0`, `caption_1`, ...;
each row has a text or a list of texts there. Where two of these are there, or it is another, `annotations` names it
(several with commas). That of images is the only one that can be, or what `images` names. A column of `datasets`' class
labels is a task of zero-shot classification. Splits are the set's own, for `parts`. The key of a sample is the path
that its row gives the image, without extension, where every row has another, else the table's name and the row's
number. Rows without a caption or an image are left out, counted and named. `datasets` itself is not needed, only
pyarrow, which mlflow brings. In params.yaml:

    data:
      format: hugging_face
      root: data/my_set # a folder, or one parquet file
      annotations: null # or the column of captions
      images: null # or the column of images
      parts: {refine: 0.8, val: 0.1, eval: 0.1} # or the set's own splits: {refine: train, eval: test}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import flickr
from pipeline_lib.sources.arrow import RowImage, TableFile, open_table
from pipeline_lib.sources.classes import refuse_ids
from pipeline_lib.sources.jsonl import values
from pipeline_lib.sources.parts import hash64
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import (
    CLASS_TASK,
    FileImage,
    ImageRef,
    Sample,
    Source,
    Task,
    encodable,
    extension_of,
    is_inside,
    make_sample,
)
from pipeline_lib.sources.tables import Rows, read_json

CAPTIONS = ("text", "caption", "captions", "sentences", "title")
NUMBERED = r"(caption|text|sentence)_?\d+"
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
EXPECTED = 'expected {"file_name": "a.jpg", "text": "..."}'
NAMES = {"images": "images", "annotations": "captions"}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = r"train|training|validation|valid|val|dev|test|testing|eval|evaluation"


class File(NamedTuple):
    """One file of rows."""

    path: Path
    split: str


class Row(NamedTuple):
    """A row that can be used."""

    image: ImageRef
    captions: list[Any]
    labels: dict[str, int]
    key: str  # by its place in the file
    file: str  # the path that it gives the image; empty if none
    split: str


class Columns(NamedTuple):
    """Which columns of the tables are used."""

    image: str
    has_path: bool  # whether an image has a path beside its bytes
    captions: tuple[str, ...]
    labels: dict[str, str]  # task -> column
    classes: dict[str, list[str]]  # task -> class names


def open_set(place: Place) -> Source:
    """Open a set of one of the layouts; its texts are read once here, and once for each pass over the samples.

    Raises:
        UserError: It is of none of the layouts or of several, its columns cannot be told, or no row can be used.
    """
    files = find_files(place)
    columns = None if files[0].path.name in METADATA else _columns(place, files)

    def read() -> Iterator[Row | str]:
        for file in files:
            yield from _listed(place, file) if columns is None else _table_rows(place, file, columns)

    rows, by_path = _survey(place.root, read())
    tasks = {name: Task(tuple(names)) for name, names in (columns.classes if columns else {}).items()}
    for task in tasks.values():
        refuse_ids(place.name, task.classnames)

    def make() -> Iterator[Sample]:
        for row in read():
            if not isinstance(row, str):
                key = os.path.splitext(row.file)[0] if by_path else row.key
                extension = extension_of(row.file)
                yield make_sample(key, row.image, extension, row.captions, labels=row.labels, split=row.split)

    splits = tuple(dict.fromkeys(file.split for file in files if file.split))
    captioned = columns is None or bool(columns.captions)
    return place.make_source(make, splits, captioned=captioned, labelled=not captioned, tasks=tasks, rows=rows)


def find_files(place: Place) -> list[File]:
    """Find the files of rows and the split of each.

    Raises:
        UserError: There is none, or there are files of several layouts.
    """
    root = place.root
    if root.is_file():
        return [File(root, "")]
    tables = [path for path in sorted(root.rglob("*.parquet")) if path.name not in METADATA]
    found = {
        "save_to_disk": _saved(root),
        "imagefolder": _metadata(root),
        "parquet": [File(path, _split_of(path.relative_to(root))) for path in tables],
    }
    layouts = {name: files for name, files in found.items() if files}
    if len(layouts) != 1:
        what = f"files of {' and '.join(layouts)}" if layouts else "no parquet, no state.json and no metadata file"
        raise UserError(f"{place.name}: {root}: {what}; name a folder that holds one layout of `datasets`")
    return next(iter(layouts.values()))


def _saved(root: Path) -> list[File]:
    """List the files of `save_to_disk`, in its order."""
    if not (root / "dataset_dict.json").is_file():
        return _saved_split(root, "") if (root / "state.json").is_file() else []
    splits = _fields(root / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(is_inside(".", split) for split in splits):
        raise UserError(f'{root / "dataset_dict.json"}: expected {{"splits": ["train", ...]}}, the names of folders')
    return [file for split in splits for file in _saved_split(root / split, split)]


def _saved_split(folder: Path, split: str) -> list[File]:
    """List the files of one split by its state.

    Raises:
        UserError: The state is missing or of another form, or a file of indices chooses the rows.
    """
    path = folder / "state.json"
    state = _fields(path)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{folder}: its rows are chosen by a file of indices; save dataset.flatten_indices() instead")
    files = state.get("_data_files")
    named = files if isinstance(files, list) else []
    names: list[Any] = [each.get("filename") if isinstance(each, dict) else None for each in named]
    if not names or not all(is_inside(".", name) for name in names):
        raise UserError(f'{path}: expected {{"_data_files": [{{"filename": "data-00000-of-00001.arrow"}}, ...]}}')
    return [File(folder / name, split) for name in names]


def _fields(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected an object, found {type(fields).__name__}")
    return fields


def _metadata(root: Path) -> list[File]:
    """List the metadata files of an image folder: its own, or that of each split."""
    found = []
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")):
        there = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(there) > 1:
            raise UserError(f"{folder}: {there[0].name} or {there[1].name}? take out one")
        found += [File(path, "" if folder == root else folder.name) for path in there]
    return found


def _split_of(path: Path) -> str:
    """Return the split that the name of a parquet file below the root tells, or its folders; empty if none does."""
    whole = re.fullmatch(r"(.+?)-\d+-of-\d+.*", path.stem)
    if whole:
        return whole[1]
    for part in (path.stem, *reversed(path.parts[:-1])):
        named = re.search(rf"(?:^|[^a-z])({SPLITS})(?:[^a-z]|$)", part.lower())
        if named:
            return named[1]
    return ""


def _survey(root: Path, read: Iterable[Row | str]) -> tuple[Rows, bool]:
    """Count the rows, and tell whether every one gives its image a path of its own."""
    rows, paths, have = Rows(root, unit="row"), array("Q"), True
    for row in read:
        rows.read += 1
        if isinstance(row, str):
            rows.leave_out(rows.read, row)
        else:
            have = have and bool(row.file)
            paths.append(hash64(encodable(row.file)))
    rows.check()
    return rows, have and len(np.unique(np.asarray(paths, dtype=np.uint64))) == len(paths)


def _columns(place: Place, files: Sequence[File]) -> Columns:
    """Tell which columns hold images, captions and labels: the same in all files.

    Raises:
        UserError: It cannot be told, or two files have different ones.
    """
    first, *others = ((file.path, _columns_of(place, open_table(str(file.path)))) for file in files)
    for path, found in others:
        if found != first[1]:
            raise UserError(f"{place.name}: {path} has other columns than {first[0]}; name one of the two")
    return first[1]


def _columns_of(place: Place, table: TableFile) -> Columns:
    images = table.image_columns
    usual = [name for name, fields in images.items() if fields or name in IMAGES]
    image = _choose(place, "images", [[name] for name in usual], list(images), table.path)[0]
    classes = table.class_columns
    tasks = {CLASS_TASK if len(classes) == 1 else column: column for column in classes}
    captions: list[str] = []
    if not (place.evaluated_only and classes and not _usual_captions(table.text_columns)):
        captions = _choose(place, "annotations", _usual_captions(table.text_columns), table.text_columns, table.path)
    names = {task: classes[column] for task, column in tasks.items()}
    return Columns(image, "path" in images[image], tuple(captions), tasks, names)


def _usual_captions(names: Iterable[str]) -> list[list[str]]:
    """Return the usual columns of captions: one, or several that are numbered."""
    there = list(names)
    numbered = sorted(name for name in there if re.fullmatch(NUMBERED, name))
    return [[name] for name in CAPTIONS if name in there] + ([numbered] if numbered else [])


def _named(columns: str | None) -> list[str]:
    return [name.strip() for name in (columns or "").split(",") if name.strip()]


def _choose(place: Place, key: str, usual: Sequence[list[str]], possible: Sequence[str], where: str) -> list[str]:
    """Return the columns that `place` names, or the only usual ones.

    Raises:
        UserError: It names another column than those that are possible, or none or several are usual.
    """
    named = _named(getattr(place, key))
    wrong = [name for name in named if name not in possible]
    if wrong or (not named and len(usual) != 1):
        what = (
            f"`{wrong[0]}` is none" if wrong else "none has a usual name" if not usual else "several have usual names"
        )
        raise UserError(
            f"{place.name}.{key}: which column of {where} holds the {NAMES[key]}? {what}; columns of that type: "
            f"{', '.join(possible) or 'none'}"
        )
    return named or usual[0]


def _table_rows(place: Place, file: File, columns: Columns) -> Iterator[Row | str]:
    """Yield the rows of a table, their images unread."""
    table, number = open_table(str(file.path)), 0
    top = os.path.splitext(os.path.relpath(file.path, place.folder))[0]
    path = f"{columns.image}.path"
    wanted = [*columns.captions, *columns.labels.values(), *([path] if columns.has_path else [])]
    for group in range(table.num_groups):
        try:
            found = {name: array.to_pylist() for name, array in table.read(group, wanted).items()}
        except ValueError as error:
            raise UserError(str(error)) from None
        for row in range(table.num_rows(group)):
            texts = [text for name in columns.captions for text in _texts(found[name][row])]
            labels = {task: found[name][row] for task, name in columns.labels.items()}
            labels = {task: label for task, label in labels.items() if label is not None and label >= 0}
            name = (found[path][row] or "") if columns.has_path else ""
            image = RowImage(str(file.path), group, row, columns.image, name)
            yield Row(image, texts, labels, f"{top}/{number}", name, file.split)
            number += 1


def _listed(place: Place, file: File) -> Iterator[Row | str]:
    """Yield the images that a metadata file lists, each once with all its captions, and what is wrong with its rows."""
    folder = str(file.path.parent)
    captions: dict[str, list[Any]] = {}
    for row in _metadata_rows(place, file.path):
        if isinstance(row, str):
            yield f"{file.path.name}: {row}"
        elif not is_inside(folder, row[0]):
            yield f"{file.path.name}: {row[0][:60]!r} is no file below {folder}"
        else:
            captions.setdefault(row[0], []).extend(row[1])
    for name, texts in captions.items():
        path = os.path.join(folder, name)
        relative = os.path.relpath(path, place.folder)
        yield Row(FileImage(path), texts, {}, relative, relative, file.split)


def _metadata_rows(place: Place, path: Path) -> Iterator[tuple[str, list[Any]] | str]:
    """Yield (image file, captions), or why a row has none."""
    if path.suffix == ".csv":
        rows = Rows(path)
        yield from ((name, [caption]) for name, caption in flickr.read_captions(rows, str(path.parent)))
        yield from (f"line {number}: {reason}" for number, reason in rows.bad)
        return
    if path.suffix == ".parquet":
        table = open_table(str(path))
        dicts: Iterable[tuple[int, Any, str]] = (
            (row, value, "") for group in range(table.num_groups) for row, value in enumerate(table.rows(group), 1)
        )
    else:
        dicts = values(path)
    for number, value, fault in dicts:
        name = value.get("file_name") if isinstance(value, dict) else None
        if fault or not isinstance(name, str):
            yield f"line {number}: {fault or EXPECTED}"
            continue
        usual = [[column] for column in _named(place.annotations)] or _usual_captions(value)
        if len(usual) != 1 and not place.annotations:
            yield f"line {number}: {'several captions' if usual else EXPECTED}"
            continue
        yield name, [text for columns in usual for column in columns for text in _texts(value.get(column))]


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
