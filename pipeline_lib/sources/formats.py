"""The formats by name, and the two ways to open a set: as the data of params.yaml, or as one of its evaluation sets.

The file of each format shows its layout on disk and the block of params.yaml to paste. Opening a set opens no image: a
missing one is found where it is read.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import (
    caption_choice,
    clip_benchmark,
    coco,
    docci,
    flickr,
    hugging_face,
    image_folder,
    image_pairs,
    jsonl,
    openmoji,
    scenes,
    sharegpt4v,
    urban1k,
    webdataset,
    xm3600,
)
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Source
from pipeline_lib.sources.settings import DataSettings

FORMATS: Mapping[str, Callable[[Place], Source]] = {
    "scenes": scenes.open_set,
    "openmoji": openmoji.open_set,
    "coco": coco.open_set,
    "flickr": flickr.open_set,
    "jsonl": jsonl.open_set,
    "hugging_face": hugging_face.open_set,
    "image_folder": image_folder.open_set,
    "webdataset": webdataset.open_set,
    "clip_benchmark": clip_benchmark.open_set,
    "caption_choice": caption_choice.open_set,
    "image_pairs": image_pairs.open_set,
    "docci": docci.open_set,
    "sharegpt4v": sharegpt4v.open_set,
    "urban1k": urban1k.open_set,
    "xm3600": xm3600.open_set,
}


def open_source(data: DataSettings) -> Source:
    """Open the set of `data.root`.

    Raises:
        UserError: It is not there, or not in the format's layout.
    """
    place = Place(
        name="data",
        format=data.format,
        root=Path(data.root),
        parts=data.parts,
        images=data.images,
        annotations=data.annotations,
        limit=data.limit,
    )
    return _open(place, "root")


def open_evaluation_set(data: DataSettings, name: str) -> Source:
    """Open the set `data.evaluation.<name>`.

    Raises:
        UserError: It is not there, or not in the format's layout.
    """
    chosen = data.evaluation[name]
    place = Place(
        name=f"data.evaluation.{name}",
        format=chosen.format,
        root=Path(data.evaluation_root, chosen.path),
        parts={name: 1.0},
        images=chosen.images,
        annotations=chosen.annotations,
        split=chosen.split,
        language=chosen.language,
        limit=chosen.limit,
        evaluated_only=True,
    )
    if chosen.format != "xm3600":
        place.refuse(xm3600.LANGUAGE)
    return _open(place, "path")


def _open(place: Place, key: str) -> Source:
    if not os.path.exists(place.root):
        raise UserError(f"{place.name}.{key}: {place.root} does not exist; it is relative to the current folder")
    source = FORMATS[place.format](place)
    return dataclasses.replace(source, facts={"format": place.format, **source.facts})
