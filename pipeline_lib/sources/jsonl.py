"""JSON Lines: an image with its captions, labels or both per line; the format for a set of your own.

    data/my_set/
        set.jsonl        {"image": "photos/a.jpg", "captions": ["A red bicycle.", "A bicycle against a wall."]}
                         {"image": "photos/b.jpg", "caption": "Two bicycles.", "key": "bikes-2", "label": "bicycle"}
        photos/a.jpg

`image` is relative to the file's folder (or to `images`), or absolute. Without a `key` the key is the path of the image
without its extension. `label` is the name of a class, and `labels` names one for each of several tasks
(`{"class": "bicycle", "size": "big"}`); zero-shot classification is evaluated for each task. In params.yaml:

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import CLASS_TASK, FileImage, Sample, Source, Task, extension_of, make_sample


def open_set(place: Place) -> Source:
    """Open a set of JSON Lines; the file is read once here for its tasks, and once for each pass over the samples.

    Raises:
        UserError: The file or the image folder is missing, a line is not of this form, or no line of training data
            has captions.
    """
    path = place.find_captions_file(("*.jsonl",))
    folder = str(place.folder if place.images is None else place.find_image_folder(()))
    captioned, tasks = _survey(path)
    if captioned is False and not place.evaluated_only:
        raise UserError(f'{path}: no line has captions to train on; write {{"image": "a.jpg", "captions": ["..."]}}')
    indices = {task: {name: index for index, name in enumerate(tasks[task].classnames)} for task in tasks}

    def make() -> Iterator[Sample]:
        for number, row in _read_rows(path):
            key, captions = _key_and_captions(path, number, row)
            labels = {task: indices[task][name] for task, name in _labels(path, number, row).items()}
            image = FileImage(os.path.join(folder, row["image"]))
            yield make_sample(key, image, extension_of(row["image"]), captions, labels=labels)

    return place.make_source(make, captioned=bool(captioned), tasks=tasks)


def _survey(path: Path) -> tuple[bool | None, dict[str, Task]]:
    """Return whether any line has captions (None: there is no line), and the tasks with their class names."""
    captioned: bool | None = None
    names: dict[str, set[str]] = {}
    for number, row in _read_rows(path):
        captioned = bool(captioned) or "caption" in row or "captions" in row
        for task, name in _labels(path, number, row).items():
            names.setdefault(task, set()).add(name)
    return captioned, {task: Task(tuple(sorted(found))) for task, found in sorted(names.items())}


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number of the line, its value) of a file of JSON Lines, empty lines left out.

    Raises:
        UserError: A line is not JSON.
    """
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}: line {number}: not JSON ({error})") from None


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the line, its object), each with the name of an image."""
    for number, row in read_values(path):
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise UserError(f'{path}: line {number}: expected {{"image": "a.jpg", "captions": ["..."]}}')
        yield number, row


def _key_and_captions(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, list[Any]]:
    image = row["image"]
    key = row.get("key", os.path.splitext(os.path.basename(image) if os.path.isabs(image) else image)[0])
    captions = row.get("captions", [row["caption"]] if "caption" in row else [])
    if isinstance(row.get("caption"), list):
        raise UserError(f"{path}: line {number}: `caption` must be text; a list of texts is called `captions`")
    if not isinstance(key, str) or not isinstance(captions, list):
        raise UserError(f"{path}: line {number}: `key` must be text and `captions` a list of texts")
    return key, captions


def _labels(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, str]:
    """Return {task: class name}."""
    labels = row.get("labels", {CLASS_TASK: row["label"]} if "label" in row else {})
    if not isinstance(labels, dict) or not all(isinstance(name, str) and name for name in labels.values()):
        raise UserError(f"{path}: line {number}: `label` must be a class name, `labels` {{task: class name}}")
    return labels
