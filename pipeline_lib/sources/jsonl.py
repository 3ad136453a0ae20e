"""JSON Lines: an image with its captions, labels or both per line; the format for a set of your own.

    data/my_set/
        set.jsonl        {"image": "photos/a.jpg", "captions": ["A red bicycle.", "A bicycle against a wall."]}
                         {"image": "photos/b.jpg", "caption": "Two bicycles.", "key": "bikes-2", "label": "bicycle"}
        photos/a.jpg

`image` is relative to the file's folder (or to `images`), or absolute. Without a `key` the key is the path of the image
without its extension. `label` is the name of a class, and `labels` names one for each of several tasks
(`{"class": "bicycle", "size": "big"}`); zero-shot classification is evaluated for each task. An image may stand in
several lines, such as one a caption: they are taken together, and must not contradict each other. Hugging Face's
`metadata.jsonl` (`file_name` and `text`) is read too, and so are a JSON list of such objects and files packed by gzip.
A line that is not of this form is left out, counted and named. In params.yaml:

    data:
      format: jsonl
      root: data/my_set # or data/my_set/set.jsonl
      annotations: null # the only *.jsonl; or its name
      images: null # the folder that the images' names are relative to; null: the folder of the file
      parts: {refine: 0.8, val: 0.1, eval: 0.1}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.classes import refuse_ids
from pipeline_lib.sources.parts import hash64
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import (
    CLASS_TASK,
    FileImage,
    Sample,
    Source,
    Task,
    encodable,
    extension_of,
    make_sample,
)
from pipeline_lib.sources.tables import Rows, plain_suffix, read_json, read_text_lines

EXPECTED = 'expected {"image": "a.jpg", "captions": ["..."]}'


class Line(NamedTuple):
    """A line as the file has it, or all lines of one image together."""

    number: int  # of the first of them
    key: str
    image: str
    captions: list[Any]
    labels: dict[str, str]  # task -> class name


@dataclass(slots=True)
class Survey:
    """What the lines of a file are, from one pass over it."""

    rows: Rows
    captioned: bool = False  # whether any line has captions
    names: dict[str, set[str]] = field(default_factory=dict)  # of the classes, by task
    keys: array[int] = field(default_factory=lambda: array("Q"))  # a hash of each


def open_set(place: Place) -> Source:
    """Open a set of JSON Lines; the file is read once or twice here, and once for each pass over the samples.

    Raises:
        UserError: The file or the image folder is missing, no line is of this form, two lines contradict each other, or
            no line has what the set is for: captions to train on, captions or labels to evaluate with.
    """
    path = place.find_captions_file(("*.jsonl",))
    folder = str(place.folder if place.images is None else place.find_image_folder(()))
    found = _survey(path)
    if found.rows.read and not found.captioned and not (place.evaluated_only and found.names):
        lacking = "captions or labels" if place.evaluated_only else "captions to train on"
        raise UserError(f'{path}: no line has {lacking}; write {{"image": "a.jpg", "captions": ["..."]}}')
    together = _gather(path, found)
    tasks = {task: Task(tuple(sorted(names))) for task, names in sorted(found.names.items())}
    for task in tasks.values():
        refuse_ids(str(path), task.classnames)
    indices = {task: {name: index for index, name in enumerate(tasks[task].classnames)} for task in tasks}

    def make() -> Iterator[Sample]:
        for line in _good_lines(path):
            whole = together.get((line.key, line.image), line)
            if whole.number == line.number:
                labels = {task: indices[task][name] for task, name in whole.labels.items()}
                image = FileImage(os.path.join(folder, whole.image))
                yield make_sample(whole.key, image, extension_of(whole.image), whole.captions, labels=labels)

    return place.make_source(make, image_folder=folder, captioned=found.captioned, tasks=tasks, rows=found.rows)


def _survey(path: Path) -> Survey:
    found = Survey(Rows(path, unit="entry" if plain_suffix(path) == ".json" else "line"))
    for number, value, fault in values(path):
        found.rows.read += 1
        line = fault or _line(number, value)
        if isinstance(line, str):
            found.rows.leave_out(number, line)
            continue
        found.captioned = found.captioned or _caption_field(value) in value
        found.keys.append(hash64(line.key))
        for task, name in line.labels.items():
            found.names.setdefault(task, set()).add(name)
    found.rows.check()
    return found


def _gather(path: Path, found: Survey) -> dict[tuple[str, str], Line]:
    """Return {(key, image): all its lines as one} of the images that stand in several lines.

    Raises:
        UserError: Two lines of an image contradict each other, or one says nothing that the other does not.
    """
    values, counts = np.unique(np.asarray(found.keys, dtype=np.uint64), return_counts=True)
    repeated = set(values[counts > 1].tolist())
    together: dict[tuple[str, str], Line] = {}
    for line in _good_lines(path) if repeated else ():
        if hash64(line.key) in repeated:
            whole = together.setdefault((line.key, line.image), line)
            if whole is not line:
                _add(path, whole, line)
    return together


def _add(path: Path, whole: Line, line: Line) -> None:
    for task, name in line.labels.items():
        if whole.labels.get(task, name) != name:
            raise UserError(
                f"{path}: line {line.number}: label `{name}` of {line.image}, which has label `{whole.labels[task]}` "
                f"since line {whole.number}; leave out the wrong one"
            )
    if not line.captions and line.labels.keys() <= whole.labels.keys():
        raise UserError(f"{path}: line {line.number}: {line.image} is there since line {whole.number}; delete one")
    whole.captions.extend(line.captions)
    whole.labels.update(line.labels)


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number of the line, its value) of a file of JSON Lines, empty lines left out.

    Raises:
        UserError: A line is not JSON.
    """
    for number, value, fault in values(path):
        if fault:
            raise UserError(f"{path}: line {number}: {fault}")
        yield number, value


def good_values(rows: Rows, is_good: Callable[[Any], bool], expected: str) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of what `is_good` in the file of `rows`, which counts all and leaves out the rest."""
    for number, value, fault in values(rows.path):
        rows.read += 1
        if fault or not is_good(value):
            rows.leave_out(number, fault or expected)
        else:
            yield number, value


def values(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Yield (number, value, what is wrong with it) of each line, or of each entry of a JSON file that is a list."""
    if plain_suffix(path) == ".json":
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path}: expected a list of objects, found {type(content).__name__}; {EXPECTED} each")
        yield from ((number, value, "") for number, value in enumerate(content, 1))
        return
    for number, line in read_text_lines(path):
        if line is None:
            yield number, None, "not UTF-8"
        elif line.strip():
            try:
                value, fault = json.loads(line), ""
            except (ValueError, RecursionError) as error:
                value, fault = None, f"not JSON ({error})"
            yield number, value, fault


def _good_lines(path: Path) -> Iterator[Line]:
    for number, value, fault in values(path):
        line = fault or _line(number, value)
        if isinstance(line, Line):
            yield line


def _line(number: int, value: Any) -> Line | str:
    """Return what a line says, or why it cannot be used."""
    if not isinstance(value, dict):
        return EXPECTED
    image = value.get(_image_field(value))
    if not isinstance(image, str) or not image or "\0" in image:
        return EXPECTED
    if _image_field(value) == "file_name" and "text" in value and ("caption" in value or "captions" in value):
        return "`text` and `caption`: which of them is the caption?"
    key = value.get("key", os.path.splitext(os.path.basename(image) if os.path.isabs(image) else image)[0])
    name = _caption_field(value)
    texts = value.get(name, [])
    if name != "captions" and isinstance(texts, list) and name in value:
        return f"`{name}` must be text; a list of texts is called `captions`"
    captions = texts if name == "captions" or name not in value else [texts]
    if not isinstance(key, str) or not key or not isinstance(captions, list):
        return "`key` must be text and `captions` a list of texts"
    labels = value.get("labels", {CLASS_TASK: value["label"]} if "label" in value else {})
    if not isinstance(labels, dict) or not all(isinstance(name, str) and name for name in labels.values()):
        return "`label` must be a class name, `labels` {task: class name}"
    named = {encodable(task): encodable(name) for task, name in labels.items()}
    return Line(number, encodable(key), image, list(captions), named)


def _image_field(value: Mapping[str, Any]) -> str:
    """Return which field names the image; Hugging Face calls it `file_name`, and the caption `text`."""
    return "file_name" if "file_name" in value and "image" not in value else "image"


def _caption_field(value: Mapping[str, Any]) -> str:
    if _image_field(value) == "file_name" and "text" in value:
        return "text"
    return "captions" if "captions" in value else "caption"
