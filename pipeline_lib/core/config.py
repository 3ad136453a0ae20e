"""The only reader of params.yaml: one frozen dataclass per section, every error with its dotted path.

No field that decides a result has a default here; params.yaml is the single place where it is written.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline_lib.core import yaml12
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import (
    AtLeastOne,
    Count,
    Eights,
    NotNegative,
    Positive,
    ProperShare,
    Share,
    ShareBelow1,
    build,
    did_you_mean,
    section,
    show_value,
)

MODELS = ("base", "refined")  # what is evaluated


@section
class Paths:
    """Where each stage writes, relative to the current folder (dvc runs stages in the project's)."""

    base: Path  # the pre-trained model, an open_clip folder
    shards: Path  # images and captions as tars, a folder per part and evaluation set
    teacher: Path  # the teacher's features and the token ids
    pixels: Path  # decoded images, where `cache_teacher.pixels` has them stored
    refined: Path  # the refined model, an open_clip folder
    eval: Path  # of each model: numbers, per-item results, features
    report: Path  # the page; its verdict in numbers beside it, as `<report>.json`

    def folders(self, *stages: str) -> dict[str, Path]:
        """The output folders of these stages, of all without any, by the stage's name in the order of the pipeline."""
        found = {"base": self.base, "shard": self.shards, "cache_teacher": self.teacher, "refine": self.refined}
        found |= {f"evaluate@{model}": self.eval / model for model in MODELS} | {"report": self.report}
        return {stage: folder for stage, folder in found.items() if stage in stages or not stages}

    @property
    def report_numbers(self) -> Path:
        """The verdict in numbers, which DVC compares."""
        return self.report.with_name(f"{self.report.name}.json")


@section
class EvaluationSet:
    """One more set to evaluate on, below `data.evaluation_root`."""

    format: Literal["coco", "flickr", "jsonl", "image_folder", "webdataset", "clip_benchmark"]  # see `sources`
    path: str  # folder or file, relative to data.evaluation_root
    images: str | None = None  # coco, flickr, jsonl: image folder relative to `path`'s folder; null: the format's own
    split: str | None = None  # clip_benchmark: `train` or `test` (null: test); flickr, jsonl: a list file to select by
    limit: AtLeastOne | None = None  # use the first N samples only; null: all


@section
class Data:
    """The image-text set, its parts, and further sets to evaluate on."""

    format: Literal["openmoji", "coco", "flickr", "jsonl", "image_folder", "webdataset"]  # its layout, see `sources`
    root: str  # folder or file that holds the set; a dependency of `base` and `shard`
    images: str | None  # coco, flickr, jsonl: image folder relative to root's folder; null: the format's own place
    annotations: str | None  # coco, flickr, jsonl: captions file relative to root; null: the format's usual name
    parts: Mapping[str, float | str]  # part name -> list file below root, or share of the samples that no list claims;
    # `base` trains the demo base, `refine` is what refinement trains on, `val` gives its loss on pairs not trained on
    # (and is the usual evaluate.selection); every other part is evaluated
    limit: AtLeastOne | None  # use the first N samples only (a trial run); null: all
    evaluation_root: str  # folder that holds the sets of `evaluation`; a dependency of `shard`
    evaluation: Mapping[str, EvaluationSet]  # name -> set; {}: evaluate on the parts alone


@section
class DemoBase:
    """The small dual encoder joined from two published towers; its heads are trained on part `base`."""

    image_size: AtLeastOne  # side of the square input, in pixels
    embed_dim: AtLeastOne  # width of the space that both heads project into
    epochs: AtLeastOne  # passes over part `base`
    batch_size: AtLeastOne  # pairs per step
    learning_rate: Positive  # of AdamW at the start; half a cosine to 0 follows
    weight_decay: NotNegative  # of AdamW, on the heads; none on the temperature
    dropout: ShareBelow1  # share of the tower features set to 0 while the heads are trained
    seed: Count  # of the heads' first weights, the order, the captions drawn and the dropout


@section
class Base:
    """Where the pre-trained model comes from."""

    source: Literal["demo", "open_clip", "checkpoint", "local_dir"]  # demo: two towers joined here; open_clip: a tag,
    # downloaded; checkpoint: weights of your own; local_dir: a folder that open_clip can load
    model: str | None  # open_clip architecture, for `open_clip` and a `checkpoint` that is a file; else null
    pretrained: str | None  # open_clip tag, for `open_clip`; for a `checkpoint` file the tag whose preprocessing it
    # shares, or null where all tags of the architecture have the same
    path: str | None  # for `checkpoint` a file or a Hugging Face CLIPModel folder, for `local_dir` a folder; else null
    demo: DemoBase | None = None  # for `demo`; the other sources do without it


@section
class Shard:
    """How samples are written to tars."""

    samples_per_shard: AtLeastOne  # samples in one tar, the last one of a part excepted
    max_image_bytes: AtLeastOne  # larger image files are quarantined: left out, and named in a list
    max_image_pixels: AtLeastOne  # larger images are quarantined (decompression bombs)
    max_caption_chars: AtLeastOne  # longer captions are quarantined with their image
    max_bad_share: Share  # share of quarantined samples in a part above which the stage fails
    max_overlap_share: Share  # share of evaluation images found in a training part above which the stage fails


@section
class CacheTeacher:
    """The frozen teacher's features, computed once."""

    mode: Literal["cached", "online"]  # online: refine runs the teacher itself (the reference path)
    teacher: str  # `base`, or the folder of another open_clip model
    precision: Literal["fp32", "tf32", "bf16"]  # of the teacher's towers; tf32 is for NVIDIA GPUs
    dtype: Literal["float32", "float16"]  # of the stored features
    chunk_size: Eights  # samples per forward pass, part of the fingerprint; a multiple of 8, since in passes of another
    # size rounding depends on a row's place: the cache would not be bitwise what `online` computes
    text_cut: Literal["set", "chunk", "none"]  # cut token ids, where that is exact, at the longest caption (rounded up
    # to 16) of the set, or of each pass over captions sorted by length (faster; equal to rounding, not to the bit)
    pixels: Literal["auto", "always", "never"]  # store the uint8 pixels; auto: within max_gb and half of the free disk
    max_gb: NotNegative  # largest pixel cache of `auto`, in 10⁹ bytes
    max_bad_share: Share  # share of undecodable images above which the stage fails
    verify_share: Share  # share of the rows that is computed again at the end and compared (chunk_size to 2048 rows)
    verify_tolerance: NotNegative | None  # largest relative difference of features (loss: a tenth of it, its gradient:
    # ten times); null: 1e-4, or 2e-2 where precision or dtype is not 32 bit


@section
class Refine:
    """One recipe, one seed, the optimiser and its schedule."""

    recipe: str  # a name in `recipes.RECIPES`; its settings stand in the block of that name under `recipes:`
    seed: int  # of the order of the samples, the caption drawn for each, and RaFA's random vectors
    epochs: AtLeastOne  # passes over part `refine`
    batch_size: AtLeastOne  # pairs per optimiser step, over all processes
    micro_batch: AtLeastOne | None  # pairs per forward pass of a process, to save memory; the gradients stay those of
    # the whole batch; null: all at once
    last_batch: Literal["drop", "keep"]  # an epoch's last, smaller batch; what is dropped differs from epoch to epoch
    max_steps: AtLeastOne | None  # optimiser steps after which the run ends; null: when its epochs are over
    learning_rate: NotNegative  # of AdamW, after the warm-up
    weight_decay: NotNegative  # of AdamW, on every trained weight but logit_scale and logit_bias
    betas: tuple[ShareBelow1, ShareBelow1]  # of AdamW: how slowly its means of the gradient and of its square forget
    eps: NotNegative  # of AdamW: added to the root of the mean square
    schedule: Literal["constant", "cosine"]  # learning rate after the warm-up; cosine: half a wave, down to 0
    warmup_steps: Count  # optimiser steps in which the learning rate rises linearly; 0: none
    grad_clip: Positive | None  # largest norm of the whole gradient; null: as it is
    precision: Literal["fp32", "tf32", "bf16"]  # of the student's towers (bf16: autocast); the losses stay fp32
    text_cut: Literal["set", "batch"]  # token ids as cached, or cut again at each batch's longest caption
    trainable: Literal["all", "projections"]  # all weights, or only those that project into the shared space
    lock_image: bool  # true: the image tower is not trained
    lock_image_unlocked_groups: Count  # with lock_image: the last n groups stay trainable
    lock_text: bool  # true: the text tower is not trained
    lock_text_unlocked_layers: Count  # with lock_text: the last n layers stay trainable
    train_logit_scale: bool  # true: logit_scale (up to 100) and, where there is one, logit_bias are trained
    stochastic_layers: bool  # true: dropout and drop-path as in training (step 0 then differs from the teacher)
    grad_checkpointing: bool  # true: activations are computed again in the backward pass: less memory, more time
    compile: bool  # true: both towers through torch.compile
    step0_tolerance: NotNegative  # largest relative difference between student and teacher features before step 0;
    # larger bounds hold where the cache is not 32 bit


@section
class Evaluate:
    """What is measured, and how sure it is."""

    batch_size: AtLeastOne  # images or texts per forward pass
    recall_at: tuple[AtLeastOne, ...]  # the k of R@k; R@1 is measured in any case
    prompt: str  # single zero-shot prompt, with {} for the class name
    ensemble: Literal["set", "openai", "both"]  # templates of the ensemble: the set's own where it has them, or
    # open_clip's 80 for ImageNet; both: the latter beside the former, as `imagenet`
    selection: str  # part on which recipe, weights and mix are to be chosen: none that a model was trained on
    bootstrap_samples: AtLeastOne  # resamples of the pictures, for the intervals; the tests are exact and need none
    confidence: ProperShare  # of the intervals, between 0 and 1; a change is measurable where p is below 1 minus this
    seed: Count  # of the resamples, and of the halves that probes and separability are measured on
    linear_probe: bool  # true: a linear classifier on the frozen image features, wherever there are labels
    wise_ft: tuple[Share, ...]  # mixes between base (0) and refined (1) weights to evaluate; empty: none


@section
class Report:
    """What the page shows."""

    num_examples: Count  # pictures whose rank improved most, and as many whose rank worsened most; 0: none
    title: str  # of the page; empty: the name of the first evaluated set


@section
class Runtime:
    """How, not what: nothing here may change a result beyond rounding, so no stage re-runs for it."""

    device: str  # cpu, cuda, mps, or auto: the first of cuda, mps, cpu that is there
    num_threads: AtLeastOne | None  # of torch, in each process; null: as torch chooses
    num_workers: Count  # image decoding processes; 0: the stage decodes by itself
    processes: AtLeastOne  # >1: the stage relaunches itself under torch.distributed.run
    deterministic: bool  # true: only kernels that give the same bits again
    checkpoint_every: AtLeastOne  # optimiser steps of `refine` between checkpoints
    progress: bool  # true: progress bars, where there is a terminal


@section
class Tracking:
    """MLflow. The server's address and credentials come from the environment, never from here."""

    mode: Literal["required", "best_effort", "disabled"]  # required: a stage fails if the server is lost; best_effort:
    # what the server does not take is kept and sent later; disabled: nothing is logged
    experiment: str  # name of the MLflow experiment
    system_metrics: bool  # true: the machine's load (CPU, memory, GPU) as well


SECTIONS: dict[str, type] = {
    "paths": Paths,
    "data": Data,
    "base": Base,
    "shard": Shard,
    "cache_teacher": CacheTeacher,
    "refine": Refine,
    "evaluate": Evaluate,
    "report": Report,
    "runtime": Runtime,
    "tracking": Tracking,
}
UNTYPED = ("recipes",)  # one block per recipe; the recipe function's signature is its schema


_parsed = functools.lru_cache(maxsize=4)(yaml12.load)


def read_params(params_file: Path) -> dict[str, Any]:
    """The whole of params.yaml as plain values.

    Raises:
        UserError: The file is missing or is not a YAML mapping.
    """
    try:
        text = params_file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{params_file}: {error.strerror}; run from the project's folder or pass --params") from None
    params = copy.deepcopy(_parsed(text, str(params_file)))  # a stage asks for its sections one by one
    if params is None:
        raise UserError(f"{params_file}: the file is empty; compare with the params.yaml of the project")
    if not isinstance(params, dict):
        raise UserError(f"{params_file}: expected sections such as `refine:`, found {show_value(params)}")
    known = [*SECTIONS, *UNTYPED]
    for name in params:
        if name not in known:
            raise UserError(f"{params_file}: unknown section `{name}`{did_you_mean(str(name), known)}")
    return params


def load(params_file: Path, name: str) -> Any:
    """Section `name` of params.yaml as its dataclass.

    Raises:
        UserError: A key is unknown, missing, of the wrong type or out of range; the message holds file, dotted path
            and remedy.
    """
    return build(SECTIONS[name], raw_section(params_file, name), f"{params_file}: {name}")


def raw_section(params_file: Path, name: str) -> Any:
    """Section `name` of params.yaml as plain values (for fingerprints and `recipes`)."""
    params = read_params(params_file)
    if name not in params:
        raise UserError(f"{params_file}: section `{name}` is missing; compare with the params.yaml of the project")
    return params[name]
