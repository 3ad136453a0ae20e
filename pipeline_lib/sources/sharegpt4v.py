"""ShareGPT4V's captions: one JSON list of conversations about images that lie in the folders of several sets.

    data/sharegpt4v/
        share-captioner_coco_lcs_sam_1246k_1107.json
            [{"id": "sa_545504", "image": "sam/images/sa_545504.jpg",
              "conversations": [{"from": "human", "value": "<image> Describe ..."},
                                {"from": "gpt", "value": "In the center of the image, ..."}]}, ...]
        sam/images/sa_545504.jpg

The caption of an image is the second message, the answer, as it is. The first 1,000 entries of this file are what is
published as ShareGPT4V-1k: they are the split `test`, and all others, which Long-CLIP trains on, the split `train`. A
file of another name, such as the 1,000 cut out, has no splits. The key of a sample is the path of its image without the
extension, since two sets may use one file name. The file is read at once: 1.5 GB of text need several times as much
memory. An entry that is not of this form is left out, counted and named. In params.yaml:

    data:
      format: sharegpt4v
      root: data/sharegpt4v
      annotations: share-captioner_coco_lcs_sam_1246k_1107.json # null: the only share-captioner_*.json, else *.json
      images: null # the folder that the images' paths are relative to; null: that of the file
      parts: {eval: test, val: 0.01, refine: 0.99}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}

As an evaluation set: `evaluation: {sharegpt4v_1k: {format: sharegpt4v, path: sharegpt4v, split: test}}`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pipeline_lib.sources.jsonl import good_values
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import FileImage, Sample, Source, extension_of, is_inside, make_sample
from pipeline_lib.sources.tables import Rows

PUBLISHED = "share-captioner"  # how the name of the file begins that has the splits
HEAD = 1000  # its first entries, the split `test`
EXPECTED = 'expected {"image": "sam/images/a.jpg", "conversations": [{...}, {"from": "gpt", "value": "In the ..."}]}'


def open_set(place: Place) -> Source:
    """Open a set of ShareGPT4V's captions.

    Raises:
        UserError: The file or the image folder is missing, or no entry is of this form.
    """
    path = place.find_captions_file((f"{PUBLISHED}_*.json",), ("*.json",))
    folder = place.find_image_folder((".",))
    splits = ("test", "train") if path.name.startswith(PUBLISHED) else ()
    rows = Rows(path, unit="entry")
    found: list[tuple[str, str, str]] = []
    for number, value in good_values(rows, _is_good, EXPECTED):
        split = splits[number > HEAD] if splits else ""
        found.append((value["image"], value["conversations"][1]["value"], split))
    rows.check()

    def make() -> Iterator[Sample]:
        for name, text, split in found:
            image = FileImage(os.path.join(folder, name))
            yield make_sample(os.path.splitext(name)[0], image, extension_of(name), [text], split=split)

    return place.make_source(make, splits, folder, captioned=True, rows=rows)


def _is_good(value: Any) -> bool:
    """Return whether an entry names a file below the image folder and has an answer as its second message."""
    if not isinstance(value, dict) or not is_inside(".", value.get("image")):
        return False
    messages = value.get("conversations")
    answer = messages[1] if isinstance(messages, list) and len(messages) > 1 else None
    return isinstance(answer, dict) and answer.get("from", "gpt") == "gpt" and isinstance(answer.get("value"), str)
