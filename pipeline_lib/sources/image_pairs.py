"""Two images and two captions to be matched: Winoground, NaturalBench-Retrieval, MMVP-VLM, and rows of one's own.

    data/evaluation/winoground/
        examples.jsonl      {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "an old ...",
                             "caption_1": "a young ...", "collapsed_tag": "Object", ...}
        images/ex_0_img_0.png
    data/evaluation/naturalbench/
        metadata.json       [{"index": 0, "image_0": "a.jpg", "image_1": "b.jpg", "caption_0": "...", "caption_1": ""}]
        images/a.jpg
    data/evaluation/mmvp_vlm/
        Questions.csv       Question ID,Type,Statement: questions 1 and 2 are a pair, 3 and 4, ...
        MLLM_VLM Images/Orientation/1.jpg     a folder per type of question

Groups are Winoground's `collapsed_tag` and MMVP's types; MMVP's captions are "a photo of " and the statement, as in its
own script. Pairs of one's own are JSON Lines, with optionally `key`, `group` or `tags` (several groups):

    data/evaluation/my_pairs/
        pairs.jsonl         {"images": ["a.jpg", "b.jpg"], "captions": ["text of a", "text of b"], "group": "counting"}

In params.yaml (the other keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        winoground: {format: image_pairs, path: winoground}
        naturalbench: {format: image_pairs, path: naturalbench}
        mmvp_vlm: {format: image_pairs, path: mmvp_vlm}
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.choices import (
    Row,
    is_texts,
    make_choice_source,
    make_own_row,
    read_objects,
)
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Source, extension_of
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS

PUBLISHED = ("image_0", "image_1", "caption_0", "caption_1")
OWN = ("images", "captions")
EXPECTED = (
    'expected "image_0", "image_1", "caption_0" and "caption_1" with an "id" or "index", or "images": ["a.jpg", '
    '"b.jpg"] and "captions": ["text of a", "text of b"]'
)
QUESTIONS = ["question id", "type", "statement"]  # the header of MMVP-VLM's table


def open_set(place: Place) -> Source:
    """Open a file of pairs: `path` itself, or the one in the folder.

    Raises:
        UserError: There is no such file or several, no image folder, or a row is not of one of the forms above.
    """
    place.refuse("annotations", "split")
    path = place.find_captions_file(("*.jsonl", "metadata.json", "Questions.csv"))
    return make_choice_source(place, _questions(place, path) if path.suffix == ".csv" else _rows(place, path))


def _rows(place: Place, path: Path) -> Iterator[Row]:
    for where, name, fields in read_objects(path):
        identity = fields.get("id", fields.get("index"))
        if identity is not None and all(isinstance(fields.get(field), str) for field in PUBLISHED):
            yield _published(place, where, str(identity), fields)
        elif all(is_texts(fields.get(side)) and len(fields[side]) == 2 for side in OWN) and "negatives" not in fields:
            yield make_own_row(place, where, name, fields, fields["images"])
        else:
            raise UserError(f"{where}: {EXPECTED}")


def _published(place: Place, where: str, identity: str, fields: Mapping[str, Any]) -> Row:
    """Return a row of Winoground or NaturalBench-Retrieval."""
    folder = place.find_image_folder(("images",))
    images = [fields[field] for field in PUBLISHED[:2]]
    images = [name if extension_of(name) in IMAGE_EXTENSIONS else f"{name}.png" for name in images]
    groups = [tag for tag in [fields.get("collapsed_tag")] if isinstance(tag, str) and tag]
    return Row(where, identity, folder, images, [fields[field] for field in PUBLISHED[2:]], groups=groups)


def _questions(place: Place, path: Path) -> Iterator[Row]:
    """Yield the pairs of MMVP-VLM: questions 1 and 2, 3 and 4, ..., in the order of the first ones."""
    folder = place.find_image_folder(("MLLM_VLM Images",))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            questions = _by_number(path, csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of UTF-8 text ({error})") from None
    for number, (kind, statement) in sorted(questions.items()):
        partner = number + 1 if number % 2 else number - 1
        where = f"{path}: question {number}"
        if questions.get(partner, ("", ""))[0] != kind:
            raise UserError(f"{where}: its partner is question {partner}, and there is none of type `{kind}`")
        if number % 2:
            images = [f"{kind}/{one}.jpg" for one in (number, partner)]
            captions = [f"a photo of {text}" for text in (statement, questions[partner][1])]
            yield Row(where, f"{number}-{partner}", folder, images, captions, groups=[kind])


def _by_number(path: Path, rows: Iterable[list[str]]) -> dict[int, tuple[str, str]]:
    """Return {number: (type, statement)}."""
    questions: dict[int, tuple[str, str]] = {}
    for place, row in enumerate(rows):
        if place == 0 and [name.strip().lower() for name in row] != QUESTIONS:
            raise UserError(f"{path}: expected the header `Question ID,Type,Statement`, found {','.join(row)[:60]!r}")
        if place and row:
            if len(row) != len(QUESTIONS) or not re.fullmatch(" *[0-9]{1,9} *", row[0]) or int(row[0]) in questions:
                raise UserError(f"{path}: row {place + 1}: expected a new number, a type and a statement")
            questions[int(row[0])] = (row[1].strip(), row[2].strip())
    return questions
