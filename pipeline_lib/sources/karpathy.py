"""Karpathy's splits of COCO, Flickr30k and Flickr8k: one JSON file of a set's images, captions and splits.

    dataset_coco.json    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg",
                                      "split": "test", "sentences": [{"raw": "A man ..."}, ...]}, ...]}

Formats `coco` and `flickr` read such a file where they find it. Its splits (train, restval, val, test) are the set's
own, to be named in `data.parts`; what is usually trained on is train and restval together, which is what the others
leave over:

    parts: {val: val, eval: test, refine: 1.0}
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, is_inside, make_file_sample
from pipeline_lib.sources.tables import Rows, read_json

EXPECTED = 'expected {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A man ..."}]}'
log = logging.getLogger(__name__)


def is_karpathy(content: Any) -> bool:
    """Return whether the content of a JSON file is of this form, by its first image."""
    images = content.get("images") if isinstance(content, dict) else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def open_file(place: Place, path: Path, image_folders: Sequence[str]) -> Source:
    """Open the set that a file of this form describes; its images are in one of `image_folders`.

    Raises:
        UserError: The file is not of this form, or the image folder is missing.
    """
    content = read_json(path)
    if not is_karpathy(content):
        raise UserError(f'{path}: not one of Karpathy\'s files; expected {{"images": [...]}}, {EXPECTED} each')
    return open_content(place, path, content, image_folders)


def open_content(place: Place, path: Path, content: Mapping[str, Any], image_folders: Sequence[str]) -> Source:
    """Open the set that `content` of the file `path` describes.

    Raises:
        UserError: No image is of this form, or the image folder is missing.
    """
    if "annotations" in content:
        raise UserError(f"{path}: holds `annotations` as COCO's files and `sentences` as Karpathy's; take out one")
    rows = Rows(path, unit="image", read=len(content["images"]))
    for number, image in enumerate(content["images"], 1):
        if not _is_good(image):
            rows.leave_out(number, EXPECTED)
    rows.check()
    bad = {number for number, _ in rows.bad}
    images = [image for number, image in enumerate(content["images"], 1) if number not in bad]
    folder = place.find_image_folder(image_folders, inside=images[0].get("filepath", ""))
    splits = Counter(image["split"] for image in images if "split" in image)
    log.info("%s: splits %s", path, ", ".join(f"{split} ({count} images)" for split, count in splits.items()))

    def make() -> Iterator[Sample]:
        for image in images:
            texts = [sentence["raw"] for sentence in image["sentences"]]
            yield make_file_sample(folder, _name(image), texts, split=image.get("split", ""))

    return place.make_source(make, tuple(splits), folder, captioned=True, rows=rows)


def _name(image: Mapping[str, Any]) -> str:
    return "/".join(filter(None, [image.get("filepath"), image["filename"]]))


def _is_good(image: Any) -> bool:
    """Return whether an entry names a file below the image folder, and has texts."""
    if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
        return False
    if not all(isinstance(image.get(field, ""), str) for field in ("filepath", "filename", "split")):
        return False
    texts = all(isinstance(sentence, dict) and "raw" in sentence for sentence in image["sentences"])
    return texts and bool(image.get("filename")) and is_inside(".", _name(image))
