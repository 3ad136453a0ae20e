"""What the sets of choices share: rows of published files -> samples, one per image, and the choices among them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_lib.core.choices import Choice
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.jsonl import read_values
from pipeline_lib.sources.parts import check_keys
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import FileImage, Sample, Samples, Source, encodable, extension_of, make_sample
from pipeline_lib.sources.tables import read_json


class Row(NamedTuple):
    """A choice as a file has it."""

    where: str  # how messages name it
    key: str
    folder: str  # that the images' names are relative to
    images: Sequence[str]
    captions: Sequence[str]
    negatives: Sequence[str] = ()
    groups: Sequence[str] = ()


def make_choice_source(place: Place, rows: Iterable[Row]) -> Source:
    """Make the `Source` of choices: the images of all rows, each file once, and what each row asks of them.

    `limit` counts choices, so that none is cut in two.

    Raises:
        UserError: Two rows have one key, or a group has a name that metrics cannot have.
    """
    chosen = list(islice(rows, place.limit))
    check_keys(lambda: ((encodable(row.key), row.where) for row in chosen), place.name)
    images = {path: _key(name) for row in chosen for name, path in _paths(row)}
    choices = [_choice(row, tuple(images[path] for _, path in _paths(row))) for row in chosen]

    def make() -> Iterator[Sample]:
        return (make_sample(key, FileImage(path), extension_of(path), ()) for path, key in images.items())

    return Source(name=place.name, samples=Samples(make, place.folder), captioned=False, choices=choices)


def read_objects(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (how messages name it, its number or name, its fields) of each object of a file of JSON Lines or JSON.

    A JSON file holds a list of objects, or an object of objects, which are then known by their names.

    Raises:
        UserError: The file is not JSON, or not of this form.
    """
    for name, value in _named_values(path):
        where = f"{path}: {'line' if path.suffix == '.jsonl' else 'entry'} {name}"
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object, found {type(value).__name__}")
        yield where, name, value


def _named_values(path: Path) -> Iterable[tuple[str, Any]]:
    if path.suffix == ".jsonl":
        return ((str(number), value) for number, value in read_values(path))
    content = read_json(path)
    if not isinstance(content, dict | list):
        raise UserError(f"{path}: expected a list or an object, found {type(content).__name__}")
    return content.items() if isinstance(content, dict) else ((str(i), value) for i, value in enumerate(content))


def make_own_row(place: Place, where: str, key: str, fields: Mapping[str, Any], images: Sequence[str]) -> Row:
    """Make a row of one's own: images relative to the file's folder, or to `images`; with its `key` if it has one.

    Raises:
        UserError: `key`, `group` or `tags` is of another form.
    """
    groups = fields.get("tags", [fields["group"]] if "group" in fields else [])
    if not isinstance(fields.get("key", key), str) or not is_texts(groups):
        raise UserError(f"{where}: `key` and `group` must be text, `tags` a list of texts")
    folder = str(place.folder if place.images is None else place.find_image_folder(()))
    return Row(where, fields.get("key", key), folder, images, fields["captions"], fields.get("negatives", ()), groups)


def is_texts(value: Any, *, minimum: int = 0) -> bool:
    """Return whether a JSON value is a list of at least `minimum` texts."""
    return isinstance(value, list) and len(value) >= minimum and all(isinstance(text, str) for text in value)


def _paths(row: Row) -> list[tuple[str, str]]:
    """Return the name of each image, and the file that it is."""
    return [(name, os.path.normpath(os.path.join(row.folder, name))) for name in row.images]


def _key(name: str) -> str:
    """Return the key of an image: its path in the image folder without the extension."""
    return encodable(os.path.splitext(os.path.basename(name) if os.path.isabs(name) else os.path.normpath(name))[0])


def _choice(row: Row, images: tuple[str, ...]) -> Choice:
    for group in row.groups:
        if not re.fullmatch(r"[\w\-./ ]+", group):
            raise UserError(f"{row.where}: group {group!r} names a metric: use letters, digits, blanks and - _ . /")
    return Choice(
        key=encodable(row.key),
        images=images,
        captions=tuple(encodable(text.strip()) for text in row.captions),
        negatives=tuple(encodable(text.strip()) for text in row.negatives),
        groups=tuple(dict.fromkeys(row.groups)),
    )
