"""The only reader of params.yaml: YAML 1.2 numbers, one frozen dataclass per section, every error with its dotted path.

A section is loaded strictly: unknown, missing and mistyped keys are refused, with a suggestion where a name is close,
and numbers outside the range that stands in the field's type.
No field that decides a result has a default here; params.yaml is the single place where it is written.
PyYAML follows YAML 1.1, in which `1e-6` is a string and `no` is false, while DVC writes YAML 1.2: `Yaml12Loader` reads
what DVC writes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from pipeline_lib.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, all finite: stands in the annotation of a field (`Annotated[int, Range(at_least=1)]`)."""

    at_least: float | None = None  # smallest number
    above: float | None = None  # smaller than the smallest
    at_most: float | None = None  # largest number
    below: float | None = None  # larger than the largest
    a_multiple_of: int | None = None  # divides it

    def __contains__(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (self.a_multiple_of is None or number % self.a_multiple_of == 0)
        )

    def __str__(self) -> str:
        bounds = {name.replace("_", " "): bound for name, bound in dataclasses.asdict(self).items()}
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)


AtLeastOne = Annotated[int, Range(at_least=1)]
Eights = Annotated[int, Range(at_least=8, a_multiple_of=8)]
Count = Annotated[int, Range(at_least=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
ProperShare = Annotated[float, Range(above=0, below=1)]
ShareBelow1 = Annotated[float, Range(at_least=0, below=1)]


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def section(kind: type[T]) -> type[T]:
    """A section or block of params.yaml: a frozen keyword-only dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(kind)


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
    verify_share: Share  # share of the rows that is computed again at the end and compared (at least chunk_size rows)
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
    weight_decay: NotNegative  # of AdamW, on every trained weight
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
    train_logit_scale: bool  # true: logit_scale (and logit_bias, where there is one) is trained
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


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the YAML 1.2 core schema for booleans and numbers, and duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the parent, but a key that stands twice is an error instead of being overwritten."""
        keys: list[Any] = []
        for key_node, _ in node.value:
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            if key in keys:
                raise UserError(f"{mark.name}: line {mark.line + 1}: key `{key}` stands twice in one block; delete one")
            keys.append(key)
        return super().construct_mapping(node, deep)


Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_int(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    prefixes = {"0o": 8, "0x": 16}
    return int(node.value, prefixes.get(node.value[:2], 10))  # YAML 1.1 reads 017 as octal


Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_params(params_file: Path) -> dict[str, Any]:
    """The whole of params.yaml as plain values.

    Raises:
        UserError: The file is missing or is not a YAML mapping.
    """
    try:
        text = params_file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{params_file}: {error.strerror}; run from the project's folder or pass --params") from None
    loader = Yaml12Loader(text)
    loader.name = str(params_file)
    try:
        params = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{params_file}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if params is None:
        raise UserError(f"{params_file}: the file is empty; compare with the params.yaml of the project")
    if not isinstance(params, dict):
        raise UserError(f"{params_file}: expected sections such as `refine:`, found {_show(params)}")
    known = [*SECTIONS, *UNTYPED]
    for name in params:
        if name not in known:
            raise UserError(f"{params_file}: unknown section `{name}`{_did_you_mean(str(name), known)}")
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


def build(kind: type[T], value: Any, path: str) -> T:
    """`value` as dataclass `kind`, strictly; `path` is the dotted path that errors name."""
    if value is None:
        raise UserError(f"{path}: is empty; write its keys below it, indented ({', '.join(_required(kind))})")
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a block of keys, found {_show(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise UserError(f"{path}.{key}: unknown key{_did_you_mean(str(key), fields)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    filled = {}
    for name, field in fields.items():
        if name in value:
            filled[name] = convert(hints[name], value[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}.{name}: missing; add it ({_describe(hints[name])})")
    return kind(**filled)


def _required(kind: Any) -> list[str]:
    """Names of the fields that have no default."""
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


def convert(kind: Any, value: Any, path: str) -> Any:
    """`value` checked against annotation `kind`: scalars, Literal, X | None, tuples, mappings, Path, dataclasses."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _convert_number(kind, value, path)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, path)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, value, path)
    if origin is tuple:
        return _convert_tuple(kind, value, path)
    if origin is Literal:
        return _convert_literal(kind, value, path)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        item = typing.get_args(kind)[1]
        return {str(k): convert(item, v, f"{path}.{k}") for k, v in value.items()}
    if origin is None and _fits(kind, value):
        return kind(value)
    raise _mistyped(kind, value, path)


def _convert_number(kind: Any, value: Any, path: str) -> Any:
    plain, allowed = typing.get_args(kind)
    number = convert(plain, value, path)
    if number not in allowed:
        raise UserError(f"{path}: {value} is out of range: {_describe(plain)}, {allowed}")
    return number


def _convert_union(kind: Any, value: Any, path: str) -> Any:
    choices = typing.get_args(kind)
    if value is None and type(None) in choices:
        return None
    fitting = [choice for choice in choices if choice is not type(None) and _resembles(choice, value)]
    if not fitting:
        raise _mistyped(kind, value, path)
    return convert(fitting[0], value, path)


def _resembles(kind: Any, value: Any) -> bool:
    """Whether `value` is of the shape of `kind`, whatever may be wrong inside it."""
    kind = _plain(kind)
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) or (origin is not None and origin is not tuple and origin is not Literal):
        return isinstance(value, dict)
    return isinstance(value, list) if origin is tuple else origin is Literal or _fits(kind, value)


def _convert_tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    kinds = typing.get_args(kind)
    if not isinstance(value, list):
        raise _mistyped(kind, value, path)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise UserError(f"{path}: expected {len(kinds)} {_plural(kinds[0])}, found {len(value)}")
    return tuple(convert(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _convert_literal(kind: Any, value: Any, path: str) -> Any:
    allowed = typing.get_args(kind)
    if any(value == one and type(value) is type(one) for one in allowed):
        return value
    close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    raise UserError(f"{path}: {_show(value)} is not one of {', '.join(map(str, allowed))}{hint}")


def _mistyped(kind: Any, value: Any, path: str) -> UserError:
    return UserError(f"{path}: expected {_describe(kind)}, found {_show(value)}")


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if kind is Path else kind)


def _show(value: Any) -> str:
    name = {"NoneType": "null", "dict": "a block of keys", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )
    return name if value is None or isinstance(value, dict | list) else f"{name} {value!r}"


def _plain(kind: Any) -> Any:
    """`kind` without its range."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _describe(kind: Any) -> str:
    kind = _plain(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{_plural(arguments[0])}"
    if dataclasses.is_dataclass(kind) or (origin is not None and issubclass(origin, Mapping)):
        return "a block of keys"
    names = {float: "a number", int: "a whole number", str: "text", Path: "a path", bool: "true or false"}
    return names.get(kind, "null" if kind is type(None) else str(kind))


def _plural(kind: Any) -> str:
    return {float: "numbers", int: "whole numbers", str: "texts", Path: "paths"}.get(_plain(kind), "values")


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"
