"""A model as an open_clip directory: load, create, save.

It is self-contained: `open_clip_config.json`, `open_clip_model.safetensors` and, for Hugging Face text towers and
tokenizers and described image towers, their files beside them. Others load with plain
`open_clip.create_model_and_transforms("local-dir:<directory>")`. Those towers would be looked up on the hub, or in the
working directory, there; `load` passes the directory's own path instead, so that a moved copy loads with no network.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import open_clip.factory
import open_clip.model
import open_clip.tokenizer
import open_clip.transform
import safetensors
import safetensors.torch
import torch
import torch.overrides
from torch import nn

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.clip import Clip
from pipeline_lib.model.facts import compare_facts, compute_facts, recorded_facts
from pipeline_lib.model.files import (
    CONFIG,
    DESCRIBED,
    TOKENIZER_FILES,
    TOWER_CONFIG,
    WEIGHTS,
    copy_files,
    is_described,
    save_weights,
)
from pipeline_lib.model.joined import LANGUAGE, TEXT_SIDE, JoinedClip
from pipeline_lib.model.language import copy_language
from pipeline_lib.model.preprocess import CONVENTIONS, Preprocess
from pipeline_lib.model.towers import faster_in_channels_last


def load(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, verify: bool = True
) -> Clip:
    """Load an open_clip directory, from any working directory and with no network.

    Args:
        directory: Folder with `open_clip_config.json`, the weights, and the tower's and tokenizer's files if it needs
            any.
        device: Where to put the weights.
        dtype: Type of the weights.
        verify: Compute `Clip.facts` from what was loaded and compare them with the manifest's, where there is one.

    Returns:
        The model in eval mode, gradients on.

    Raises:
        UserError: A file is missing or broken, the weights do not fit, or the manifest says otherwise.
    """
    if not (directory / CONFIG).is_file() or not weights_file(directory):
        raise UserError(f"{directory}: no {CONFIG} and weights in it; run `dvc repro`, or check the path")
    clip = create(directory, load_weights=True)
    recorded = recorded_facts(directory)
    if verify or not recorded:
        clip.facts = {**recorded, **compute_facts(clip)}
        compare_facts(directory, clip.facts, recorded)
    else:
        clip.facts = recorded
    clip.module.to(device=device, dtype=dtype)
    if faster_in_channels_last(clip.module.visual):
        clip.module.visual.to(memory_format=torch.channels_last)  # half the time of a convolutional tower
    return clip


def open_folder(directory: Path | str, device: torch.device | str = "cpu") -> tuple[Any, Preprocess, Any]:
    """Open any result to use it, from any working directory and with no network.

    Returns:
        open_clip's model in eval mode without gradients; what makes an image (PIL) its input, float32 [3, H, W]; and
        what makes texts token ids, int64 [N, L]. All three do what the pipeline does.

    Raises:
        UserError: See `load`.
    """
    clip = load(Path(directory), device=device)
    return clip.module.requires_grad_(False), clip.preprocess, clip.tokenizer


def create(directory: Path, *, load_weights: bool = False) -> Clip:
    """Create the model that `directory/open_clip_config.json` describes, with random weights unless `load_weights`.

    Raises:
        UserError: The configuration, a file it needs, or the weights are missing or do not fit together.
    """
    config = read_config(directory)
    if TEXT_SIDE in config:
        return _create_joined(directory, config, with_weights=load_weights)
    module = _open_clip_module(directory, config, with_weights=load_weights)
    return Clip(module.eval().requires_grad_(True), config, directory)


def _create_joined(directory: Path, config: Mapping[str, Any], *, with_weights: bool) -> Clip:
    """Create a model whose texts go through a language model; open_clip makes its image tower."""
    with _Uninitialised() if with_weights else nullcontext():
        visual = _open_clip_module(directory, config, with_weights=False).visual
    clip = JoinedClip(visual, config, directory, directory / LANGUAGE)
    if with_weights:
        try:
            tensors = safetensors.torch.load_file(directory / WEIGHTS)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{directory / WEIGHTS}: cannot be read: {first_lines(error)}") from error
        if "logit_bias" in tensors:
            clip.module.logit_bias = torch.nn.Parameter(torch.zeros_like(tensors["logit_bias"]))
        load_weights(clip, tensors, str(directory))
    clip.module.eval().requires_grad_(True)
    return clip


_RANDOM = (
    *(torch.Tensor.uniform_, torch.Tensor.normal_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),  # the others call the former
)


class _Uninitialised(torch.overrides.TorchFunctionMode):
    """Leaves out the random numbers of new weights that are read from a file next: 1.2 s for ViT-B/32."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function in _RANDOM:
            return arguments[0] if arguments else named["tensor"]
        return function(*arguments, **(named or {}))


def _open_clip_module(directory: Path, config: Mapping[str, Any], *, with_weights: bool) -> Any:
    place, text_config = str(directory.resolve()), dict(config["model_cfg"]["text_cfg"])
    if text_config.get("hf_model_name"):
        if not (directory / TOWER_CONFIG).is_file():
            raise UserError(f"{directory / TOWER_CONFIG}: no such file; the text tower's configuration belongs there")
        text_config |= {"hf_model_name": place, "hf_model_pretrained": False}
    towers, image_config = {"text_cfg": text_config}, config["model_cfg"]["vision_cfg"]
    if is_described(image_config, directory):
        towers["vision_cfg"] = image_config | {"timm_model_name": f"local-dir:{place}"}
    elif image_config.get("timm_model_name") == DESCRIBED:
        raise UserError(
            f"{directory / TOWER_CONFIG}: describes no image tower of timm's; that of the model belongs there"
        )
    try:
        with _quiet(), _Uninitialised() if with_weights else nullcontext():
            return open_clip.create_model(
                f"local-dir:{place}", load_weights=with_weights, pretrained_text=False, **towers
            )
    except (RuntimeError, ValueError, TypeError, OSError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory}: does not load as an open_clip model: {first_lines(error)}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """Read `directory/open_clip_config.json`.

    Raises:
        UserError: The file is missing, or describes no model.
    """
    config = artifacts.read_json(directory / CONFIG)
    found = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(found, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= found.keys():
        raise UserError(f"{directory / CONFIG}: no `model_cfg` with embed_dim, vision_cfg and text_cfg")
    conventions = (config.get("preprocess_cfg") or {}).get(CONVENTIONS, "transformers")
    if conventions != "transformers":
        raise UserError(f"{directory / CONFIG}: {CONVENTIONS} `{conventions}` are not known; only `transformers` are")
    return config


def load_weights(clip: Clip, state_dict: Mapping[str, torch.Tensor], origin: str, remedy: str = "") -> None:
    """Copy `state_dict` into `clip`: every tensor of the model, each in its shape, and nothing else.

    open_clip's own conversions apply (older names of separate text towers, Apple's MobileCLIP names), and so does the
    way back from a separate text tower; a position table of another length is refused instead of being interpolated,
    since that would be another model. Half precision becomes float32 exactly, float64 is rounded to it.

    Args:
        clip: A model from `create`.
        state_dict: Tensors by open_clip's names, of any floating type.
        origin: What to name in an error.
        remedy: What to add to it.

    Raises:
        UserError: It does not fit; names the first tensors that are missing, unexpected, of another shape, no
            floating-point numbers where the model has such, or not finite.
    """
    tensors = open_clip.factory.convert_state_dict(clip.module, dict(state_dict))
    if "positional_embedding" in tensors and not hasattr(clip.module, "positional_embedding"):
        tensors = open_clip.model.convert_to_custom_text_state_dict(tensors)
    if not hasattr(clip.module, "text"):
        merged = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
        tensors = merged if len(merged) == len(tensors) else tensors
    tensors.pop("text.transformer.embeddings.position_ids", None)  # a buffer that transformers < 4.31 saved
    own = clip.module.state_dict()
    for name in ("logit_scale", "logit_bias"):  # 0-d in some versions, 1-d in others
        if name in tensors and name in own and tensors[name].numel() == own[name].numel():
            tensors[name] = tensors[name].reshape(own[name].shape)
    problems = _misfits(own, tensors)
    if problems:
        raise UserError(f"{origin}: does not fit the architecture: {'; '.join(problems)}{remedy}")
    clip.module.load_state_dict(tensors)


def _misfits(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    fitting = [name for name in own if name in given and given[name].shape == own[name].shape]
    usable = [name for name in fitting if _is_of_type(given[name], own[name])]
    groups = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": shapes,
        "of another type": [f"{name} {given[name].dtype}" for name in fitting if name not in set(usable)],
        "not finite": [name for name in usable if not given[name].to(own[name].dtype).isfinite().all()],
    }
    return [f"{len(found)} {kind} ({_some(found)})" for kind, found in groups.items() if found]


def _is_of_type(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Tell whether a tensor's numbers are plain ones of the model's kind: floating-point, or counts."""
    plain = given.layout == torch.strided and not given.is_quantized and not given.is_complex() and not given.is_meta
    return plain and given.is_floating_point() == own.is_floating_point() and given.dtype != torch.bool


def _some(names: list[str], count: int = 2) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def save(clip: Clip, directory: Path) -> None:
    """Write `clip` as an open_clip directory: configuration, weights, and its tower's and tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(directory / CONFIG, clip.config)
    source, target, copy = clip.directory, directory, copy_files
    if isinstance(clip, JoinedClip):
        source, target, copy = clip.language_directory, directory / LANGUAGE, copy_language
    if source.resolve() != target.resolve():
        copy(source, target)
    here = clip.directory.resolve() == directory.resolve()
    if not here and is_described(clip.config["model_cfg"]["vision_cfg"], clip.directory):
        shutil.copyfile(clip.directory / TOWER_CONFIG, directory / TOWER_CONFIG)
    save_weights(clip.module.state_dict(), directory / WEIGHTS)


def weights_file(directory: Path) -> Path | None:
    """Find the checkpoint that open_clip would load from `directory`; None if there is none."""
    with _quiet():
        found = open_clip.factory._find_checkpoint_in_dir(directory)
    return Path(found) if found else None


def write_config(directory: Path, model_config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> None:
    """Write `open_clip_config.json`, and fetch what a Hugging Face text tower or tokenizer needs beside it.

    Files that are there already are kept, so that only a directory without them needs the network.

    Args:
        directory: Where the model is being put together.
        model_config: open_clip's `model_cfg`.
        preprocess: Keys of open_clip's `preprocess_cfg`, and `conventions` (see `preprocess`); the rest take its
            defaults. The size is the image tower's.

    Raises:
        UserError: A file is missing and cannot be fetched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    complete = open_clip.transform.merge_preprocess_dict(open_clip.transform.PreprocessCfg(), dict(preprocess))
    complete["size"] = model_config["vision_cfg"].get("image_size", 224)
    complete |= {key: preprocess[key] for key in (CONVENTIONS,) if key in preprocess}
    artifacts.write_json(directory / CONFIG, {"model_cfg": dict(model_config), "preprocess_cfg": complete})
    text_config = model_config["text_cfg"]
    tower, tokenizer = text_config.get("hf_model_name"), text_config.get("hf_tokenizer_name")
    try:
        if tower and not (directory / TOWER_CONFIG).is_file():
            import transformers

            transformers.AutoConfig.from_pretrained(tower).save_pretrained(directory)
        if tokenizer and not any((directory / name).is_file() for name in TOKENIZER_FILES):
            open_clip.tokenizer.HFTokenizer(tokenizer, **(text_config.get("tokenizer_kwargs") or {})).save_pretrained(
                directory
            )
    except Exception as error:  # every HTTP and hub error, and a missing transformers package
        raise UserError(f"{tower or tokenizer}: cannot be fetched: {first_lines(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop open_clip's warnings on the root logger: `create` without weights is no mistake here."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(errors_only)
    try:
        yield
    finally:
        root.removeFilter(errors_only)
