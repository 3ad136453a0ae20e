"""Choices between captions of one image: SugarCrepe and SugarCrepe++ as they are published, and rows of one's own.

    data/evaluation/sugarcrepe/
        swap_obj.json        {"0": {"filename": "000000222235.jpg", "caption": "A ...", "negative_caption": "A ..."}}
        add_att.json, ...    a group of choices each, named by the file
    data/evaluation/coco/val2017/000000222235.jpg

SugarCrepe++ has lists, `[{"id", "filename", "caption", "caption2", "negative_caption"}, ...]`: two captions that are
both right. One file may be a set too. Choices of one's own are JSON Lines:

    data/evaluation/my_choices/
        choices.jsonl        {"image": "a.jpg", "captions": ["A red bike."], "negatives": ["A blue bike."]}
                             {"image": "a.jpg", "captions": ["..."], "negatives": ["...", "..."], "group": "colour"}

with at least one text on either side, and optionally `key` and `group` (or `tags`, several groups). Each image is one
sample, however many choices there are on it. In params.yaml (the other keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        sugarcrepe: {format: caption_choice, path: sugarcrepe} # images: val2017, images, ../val2017 or ../coco/val2017
        sugarcrepe_pp: {format: caption_choice, path: sugarcrepe_pp, images: ../coco/val2017}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.choices import Row, is_texts, make_choice_source, make_own_row, read_objects
from pipeline_lib.sources.known_answers import FILE as KNOWN_ANSWERS
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Source

IMAGE_FOLDERS = ("val2017", "images", "../val2017", "../coco/val2017")  # of the published files
CAPTIONS = ("caption", "caption2")  # the right texts of the published files; SugarCrepe has the first alone
OWN = ("captions", "negatives")
EXPECTED = (
    'expected SugarCrepe\'s "filename", "caption" and "negative_caption" (and SugarCrepe++\'s "caption2"), or '
    '"image", "captions": ["right", ...] and "negatives": ["wrong", ...]'
)


def open_set(place: Place) -> Source:
    """Open one file of choices, or a folder of such files, each of them a group.

    Raises:
        UserError: There is no such file or no image folder, or a row is not of one of the forms above.
    """
    place.refuse("annotations", "split")
    return make_choice_source(place, (row for path in _files(place) for row in _rows(place, path)))


def _files(place: Place) -> list[Path]:
    if place.root.is_file():
        return [place.root]
    found = [path for path in sorted(place.root.glob("*.json*")) if path.suffix in (".json", ".jsonl")]
    files = [path for path in found if path.name != KNOWN_ANSWERS]
    if not files:
        raise UserError(f"{place.name}: no *.json or *.jsonl in {place.root}; name the folder or file of the choices")
    return files


def _rows(place: Place, path: Path) -> Iterator[Row]:
    for where, name, fields in read_objects(path):
        captions = [fields[field] for field in CAPTIONS if field in fields]
        if captions and is_texts([fields.get("filename"), fields.get("negative_caption"), *captions]):
            key, folder = f"{path.stem}/{fields.get('id', name)}", place.find_image_folder(IMAGE_FOLDERS)
            yield Row(where, key, folder, [fields["filename"]], captions, [fields["negative_caption"]], [path.stem])
        elif isinstance(fields.get("image"), str) and all(is_texts(fields.get(side), minimum=1) for side in OWN):
            yield make_own_row(place, where, f"{path.stem}/{name}", fields, [fields["image"]])
        else:
            raise UserError(f"{where}: {EXPECTED}")
