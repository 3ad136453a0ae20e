"""Section `data` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, block, section


@block
class EvaluationSet:
    """One more set to evaluate on, below `data.evaluation_root`."""

    format: Literal["coco", "flickr", "jsonl", "image_folder", "webdataset", "clip_benchmark"]
    """See `sources`."""

    path: str
    """Folder or file, relative to data.evaluation_root."""

    images: str | None = None
    """Coco, flickr, jsonl: image folder relative to `path`'s folder; null: the format's own."""

    split: str | None = None
    """Clip_benchmark: `train` or `test` (null: test); flickr, jsonl: a list file to select by."""

    limit: AtLeastOne | None = None
    """Use the first N samples only; null: all."""


@section("data")
class DataSettings:
    """The image-text set, its parts, and further sets to evaluate on."""

    format: Literal["openmoji", "coco", "flickr", "jsonl", "image_folder", "webdataset"]
    """Its layout, see `sources`."""

    root: str
    """Folder or file that holds the set; a dependency of `base` and `shard`."""

    images: str | None
    """Coco, flickr, jsonl: image folder relative to root's folder; null: the format's own place."""

    annotations: str | None
    """Coco, flickr, jsonl: captions file relative to root; null: the format's usual name."""

    parts: Mapping[str, float | str]
    """Part name -> list file below root, or share of the samples that no list claims; `base` trains the demo base,
    `refine` is what refinement trains on, `val` gives its loss on pairs not trained on (and is the usual
    evaluate.selection); every other part is evaluated.
    """

    limit: AtLeastOne | None
    """Use the first N samples only (a trial run); null: all."""

    evaluation_root: str
    """Folder that holds the sets of `evaluation`; a dependency of `shard`."""

    evaluation: Mapping[str, EvaluationSet]
    """Name -> set; {}: evaluate on the parts alone."""
