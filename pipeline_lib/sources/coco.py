"""COCO Captions: one JSON file with the images and their captions, and a folder of images.

    data/coco/
        annotations/captions_train2017.json    {"images": [{"id": 9, "file_name": "000000000009.jpg"}, ...],
                                                "annotations": [{"image_id": 9, "caption": "A plate of ..."}, ...]}
        train2017/000000000009.jpg

The key of a sample is its file name without the extension; an image has as many captions as there are annotations of
it. In params.yaml:

    data:
      format: coco
      root: data/coco
      annotations: annotations/captions_train2017.json # null: the only annotations/captions_*.json
      images: train2017 # null: the folder of the captions file's name, beside `annotations` or below `images`
      parts: {refine: 0.99, val: 0.01}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import FileImage, Sample, Source, make_sample


def open_set(place: Place) -> Source:
    """Open a set in COCO's layout.

    Raises:
        UserError: The captions file or the image folder is missing, or the file is not of this form.
    """
    path = place.find_captions_file(("annotations/captions_*.json", "captions_*.json", "captions.json"))
    files, captions = _read_captions(path)
    split = path.stem.removeprefix("captions_")
    folder = place.find_image_folder((split, f"images/{split}", f"../{split}", f"../images/{split}", "images"))

    def make() -> Iterator[Sample]:
        for identity, name in files.items():
            key, extension = os.path.splitext(os.path.basename(name))
            image = FileImage(os.path.join(folder, name))
            yield make_sample(key, image, extension[1:].lower(), captions[identity])

    return place.make_source(make, captioned=True)


def _read_captions(path: Path) -> tuple[Mapping[Any, str], Mapping[Any, Sequence[Any]]]:
    """Return {image id: file name} and {image id: captions}."""
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
    return files, captions
