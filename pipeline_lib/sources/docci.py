"""DOCCI: a long description of each photograph, a JSON object per line, and a folder of images.

    data/docci/
        docci_descriptions.jsonlines    {"example_id": "train_00000", "split": "train", "image_file": "train_00000.jpg",
                                         "description": "An outdoor view of ..."}
        images/train_00000.jpg

Its splits (train, test, qual_dev, qual_test) are the set's own. The key of a sample is its file name without the
extension, which is its `example_id`. A line that is not of this form is left out, counted and named. In params.yaml:

    data:
      format: docci
      root: data/docci
      annotations: null # docci_descriptions.jsonlines; or its name
      images: null # images or the root itself
      parts: {refine: train, eval: test, val: 1.0} # val: qual_dev and qual_test
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}

As an evaluation set: `evaluation: {docci: {format: docci, path: docci, split: test}}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline_lib.sources.jsonl import good_values
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, is_inside, make_file_sample
from pipeline_lib.sources.tables import Rows

FIELDS = ("image_file", "description", "split")
EXPECTED = 'expected {"image_file": "train_00000.jpg", "split": "train", "description": "An outdoor view of ..."}'


def open_set(place: Place) -> Source:
    """Open DOCCI.

    Raises:
        UserError: The file or the image folder is missing, or no line is of this form.
    """
    path = place.find_captions_file(("docci_descriptions.jsonlines",))
    folder = place.find_image_folder(("images", "."))
    rows = Rows(path)
    found: list[tuple[str, str, str]] = []
    for _, value in good_values(rows, _is_good, EXPECTED):
        found.append((value["image_file"], value["description"], value["split"]))
    rows.check()

    def make() -> Iterator[Sample]:
        return (make_file_sample(folder, name, [text], split=split) for name, text, split in found)

    splits = tuple(dict.fromkeys(split for _, _, split in found))
    return place.make_source(make, splits, folder, captioned=True, rows=rows)


def _is_good(value: Any) -> bool:
    texts = isinstance(value, dict) and all(isinstance(value.get(field), str) for field in FIELDS)
    return texts and is_inside(".", value["image_file"])
