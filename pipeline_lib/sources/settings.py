"""Section `data` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, block, section


@block
class EvaluationSet:
    """One more set to evaluate on, below `data.evaluation_root`."""

    format: Literal[
        "coco",
        "flickr",
        "jsonl",
        "hugging_face",
        "image_folder",
        "webdataset",
        "clip_benchmark",
        "caption_choice",
        "image_pairs",
        "docci",
        "sharegpt4v",
        "urban1k",
        "xm3600",
        "openmoji",
    ]
    """The layout of the set on disk. `pipeline_lib/sources/<format>.py` shows each layout with an example."""

    path: str
    """The folder or file that holds the set, relative to `data.evaluation_root`."""

    images: str | None = None
    """The image folder of `coco`, `flickr`, `jsonl`, `docci`, `sharegpt4v`, `urban1k`, `xm3600`, `caption_choice` and
    `image_pairs`, relative to the set's folder. Of `hugging_face` it is the column of the images. `null` looks in the
    format's usual places; the other formats take only `null`.
    """

    annotations: str | None = None
    """As `data.annotations`: the set's captions file, relative to its folder, or the columns of `hugging_face`."""

    split: str | None = None
    """Which samples of the set are used. For `clip_benchmark` it is the folder `train` or `test`, and `null` means
    `test`. For `coco`, `flickr`, `jsonl`, `hugging_face`, `image_folder`, `docci`, `sharegpt4v`, `urban1k` and `xm3600`
    it is the name of a list file in the set's folder with a key or image name per line, or of a split that the set is
    published with (as Karpathy's files, `docci` and `sharegpt4v` have them), and `null` means all samples. For
    `openmoji` it is `moved` or `lines`. The other formats take only `null`.
    """

    language: str | None = None
    """The language whose captions are read, as the file of `xm3600` names it. The other formats take only `null`."""

    limit: AtLeastOne | None = None
    """Only the first N samples (of `caption_choice` and `image_pairs`: choices) are used, for a trial run. `null` means
    all.
    """

    shift_of: str | None = None
    """Another evaluated set or part of which this one is a shift: the same classes or some of them, in images of
    another kind, as ImageNet-R is of ImageNet. The report then shows how zero-shot top-1 changed on both, and the mean
    change over all shifts. `null`: none.
    """


@section("data")
class DataSettings:
    """The image-text set, its parts, and further sets to evaluate on."""

    format: Literal[
        "scenes", "coco", "flickr", "jsonl", "hugging_face", "image_folder", "webdataset", "docci", "sharegpt4v"
    ]
    """The layout of the set on disk. `pipeline_lib/sources/<format>.py` shows each layout with a block to paste."""

    root: str
    """The folder or file that holds the set, relative to the project's folder. The stages `base` and `shard` run again
    when it changes.
    """

    images: str | None
    """The image folder of `coco`, `flickr`, `jsonl`, `docci` and `sharegpt4v`, relative to the folder of `root`. Of
    `hugging_face` it is the column of the images. `null` looks in the format's usual places; the other formats take
    only `null`.
    """

    annotations: str | None
    """The captions file of `coco`, `flickr`, `jsonl`, `docci` and `sharegpt4v`, relative to `root`. Of `hugging_face`
    these are the columns of the captions, with commas between. `null` takes the only one of the format's usual name;
    the other formats take only `null`.
    """

    parts: Mapping[str, float | str]
    """The parts of the set. Each name has a list file in the set's folder (a key or image name per line), one of the
    splits that the set is published with (of `scenes`: base, refine, val, eval; of Karpathy's files: train, restval,
    val, test; of `docci`: train, test, qual_dev, qual_test; of `sharegpt4v`: train, test), or the share of those
    samples that neither claims, assigned by a hash of the key. The part `base` trains the heads of the demo base,
    `refine` is what the refinement trains on, and `val` gives the loss on pairs that it does not train on and is where
    choices are made (`evaluate.selection`). Every other part is evaluated.
    """

    limit: AtLeastOne | None
    """Only the first N samples of each part are used, for a trial run. `null` means all."""

    evaluation_root: str
    """The folder that holds the sets of `evaluation`. The stage `shard` runs again when it changes."""

    evaluation: Mapping[str, EvaluationSet]
    """Further sets to evaluate on, by name. `{}` evaluates on the parts alone."""
