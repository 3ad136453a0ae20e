"""COCO Captions: one JSON file with the images and their captions, and a folder of images.

    data/coco/
        annotations/captions_train2017.json    {"images": [{"id": 9, "file_name": "000000000009.jpg"}, ...],
                                                "annotations": [{"image_id": 9, "caption": "A plate of ..."}, ...]}
        train2017/000000000009.jpg

The key of a sample is its file name without the extension; an image has as many captions as there are annotations of
it. An annotation of an unknown image is left out, counted and named. The file may also be Karpathy's
`dataset_coco.json` (see `karpathy.py`: its splits are the set's own), a list as `coco_karpathy_train.json`
(`[{"image": "val2014/a.jpg", "caption": "A plate of ...", "image_id": "9"}, ...]`), or packed as .json.gz. In
params.yaml:

    data:
      format: coco
      root: data/coco
      annotations: annotations/captions_train2017.json # null: the only annotations/captions_*.json, else Karpathy's
      images: train2017 # null: the folder of the captions file's name, beside `annotations` or below `images`
      parts: {refine: 0.99, val: 0.01}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import karpathy
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, is_inside, make_file_sample
from pipeline_lib.sources.tables import Rows, read_json

FILES = ("annotations/captions_*.json", "captions_*.json", "captions.json")
KARPATHYS = tuple(f"{folder}{name}" for folder in ("", "annotations/") for name in ("dataset_coco.json*", "*karpathy*"))
FILE = "a COCO captions file"
EXPECTED = '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
ROW = 'expected {"image": "val2014/a.jpg", "caption": "A plate of ...", "image_id": "9"}'


def open_set(place: Place) -> Source:
    """Open a set in COCO's layout.

    Raises:
        UserError: The captions file or the image folder is missing, or the file is not of this form.
    """
    path = place.find_captions_file(FILES, KARPATHYS)
    content = read_json(path, FILE)
    split = path.name.removesuffix(".gz").removesuffix(".json").removeprefix("captions_")
    folders = (split, f"images/{split}", f"../{split}", f"../images/{split}", "images")
    if karpathy.is_karpathy(content):
        return karpathy.open_content(place, path, content, (*folders, ".", ".."))
    captions, rows = _read_list(path, content) if isinstance(content, list) else _read_captions(path, content)
    rows.check()
    if isinstance(content, list):
        first = next(iter(captions), "")
        folder = place.find_image_folder((*folders, ".", ".."), inside=first.rpartition("/")[0])
    else:
        folder = place.find_image_folder(folders)
    outside = next((name for name in captions if not is_inside(folder, name)), None)
    if outside is not None:
        raise UserError(f"{path}: {outside[:60]!r} is no file below {folder}; name the folder in {place.name}.images")

    def make() -> Iterator[Sample]:
        return (make_file_sample(folder, name, texts) for name, texts in captions.items())

    return place.make_source(make, image_folder=folder, captioned=True, rows=rows)


def _read_captions(path: Path, content: Any) -> tuple[Mapping[str, Sequence[Any]], Rows]:
    """Return {file name: captions} of COCO's own file, and its annotations as the rows that they are."""
    try:
        files = _files(path, content["images"])
        annotations = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not {FILE} ({type(error).__name__}: {error}); expected {EXPECTED}") from None
    rows = Rows(path, unit="annotation", read=len(annotations))
    captions: dict[str, list[Any]] = {name: [] for name in files.values()}
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= annotation.keys():
            rows.leave_out(number, 'expected {"image_id", "caption"}')
        elif _hashable(annotation["image_id"]) not in files:
            rows.leave_out(number, f"no image of the file has the id {annotation['image_id']!r}")
        else:
            captions[files[annotation["image_id"]]].append(annotation["caption"])
    return captions, rows


def _files(path: Path, images: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return {image id: file name}; an id or a file that stands twice joins captions to the wrong image."""
    files: dict[Any, str] = {}
    owners: dict[str, Any] = {}
    for image in images:
        identity, name = image["id"], str(image["file_name"])
        if files.setdefault(identity, name) != name:
            raise UserError(f"{path}: two images have the id {identity!r}: {files[identity]} and {name}")
        if owners.setdefault(name, identity) != identity:
            raise UserError(f"{path}: {name} is the file of two images: {owners[name]!r} and {identity!r}")
    return files


def _read_list(path: Path, content: Sequence[Any]) -> tuple[Mapping[str, Sequence[Any]], Rows]:
    """Return {file name: captions} of a list with an image and its caption, or its captions, in each row."""
    if not content:
        raise UserError(f"{path}: not {FILE} (an empty list); expected {EXPECTED}")
    rows = Rows(path, unit="entry", read=len(content))
    captions: dict[str, list[Any]] = {}
    owners: dict[Any, str] = {}
    for number, row in enumerate(content, 1):
        name = row.get("image") if isinstance(row, dict) else None
        if not isinstance(name, str) or not isinstance(row.get("caption"), str | list):
            rows.leave_out(number, ROW)
        elif (owner := owners.setdefault(_identity(row, name), name)) != name:
            rows.leave_out(number, f"its image_id {row['image_id']!r} is that of {owner}")
        else:
            texts = row["caption"]
            captions.setdefault(name, []).extend([texts] if isinstance(texts, str) else texts)
    return captions, rows


def _identity(row: Mapping[str, Any], name: str) -> Any:
    """Return the id of a row's image; its name where it has none or null."""
    return name if row.get("image_id") is None else _hashable(row["image_id"])


def _hashable(identity: Any) -> Any:
    """Return an id as it may stand in a dict."""
    return identity if isinstance(identity, str | int | float) else repr(identity)
