"""Weights from elsewhere, as tensors by open_clip's names: checkpoint files and Hugging Face CLIPModel folders.

Nothing here runs code from a file: safetensors, or `torch.load(weights_only=True)`. What that refuses (TorchScript
archives, pickled Python objects) gets one sentence with the remedy.

The Hugging Face conversion follows from the two models' definitions. Both are the same pre-norm transformer; they
differ in where the query, key and value matrices are stacked (open_clip keeps them as one, in that order), in the side
from which a projection multiplies (`x @ P` against `Linear`, hence a transpose), and in names.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError

Tensors = dict[str, torch.Tensor]

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # integers that OpenAI keeps among its tensors
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, in preprocessor_config.json


class Converted(NamedTuple):
    """A model in open_clip's terms."""

    model_config: dict[str, Any]
    preprocess: dict[str, Any]
    tensors: Tensors


def read_checkpoint(path: Path) -> Tensors:
    """Read tensors by name from a .safetensors file or a PyTorch checkpoint (.pt, .pth, .bin).

    A training checkpoint's `state_dict` is taken out, prefixes of wrapped modules are removed.

    Raises:
        UserError: The file is missing, is no checkpoint, or could only be read by running code from it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    _refuse_other_files(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no weights; expected a state_dict, or a dictionary with the key `state_dict`")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(
            f"{path}: `{others[0]}` is not a tensor; save the model's state_dict alone, or under the key `state_dict`"
        )
    tensors = {_bare(str(name)): value for name, value in content.items()}
    return {name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS}


def _refuse_other_files(path: Path) -> None:
    """Refuse by its first bytes what is no checkpoint at all, so that nobody is told how to make a text file load."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if path.suffix == ".safetensors":
        kind, fits = "safetensors", start[8:9] == b"{"
    else:
        kind, fits = "PyTorch", start[:1] in (b"\x80", b"") or start[:2] == b"PK"
    if not fits:
        raise UserError(f"{path}: not a {kind} checkpoint; was it downloaded whole, and is the name's ending right?")


def _bare(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _read_safetensors(path: Path) -> Tensors:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _read_torch(path: Path) -> Any:
    if _is_torchscript(path):
        raise UserError(
            f"{path}: a TorchScript archive, as OpenAI publishes them, holds code and is not read; use `base.source: "
            "open_clip` with `model: ViT-B-32-quickgelu` and `pretrained: openai` (or the like), or save the "
            "state_dict() of torch.jit.load(…) once with safetensors.torch.save_file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({found.group(1)})" if found else "something other than tensors"
        raise UserError(
            f"{path}: holds {what} beside the weights, and reading them could run code; where you trust the file, "
            'save torch.load(…, weights_only=False)["state_dict"] once with safetensors.torch.save_file'
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # its reader raises nearly every type on a broken file
        raise UserError(f"{path}: not a whole PyTorch checkpoint ({f'{error} '.splitlines()[0].strip()})") from None


def _is_torchscript(path: Path) -> bool:
    """Tell an archive of code from a checkpoint: both are zips, and only the archive has a constants table."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_hugging_face(folder: Path) -> Converted:
    """Read a Hugging Face CLIPModel folder (config.json, model.safetensors or pytorch_model.bin) in open_clip's terms.

    Raises:
        UserError: It holds another kind of model, or one that open_clip's CLIP cannot express.
    """
    path = folder / "config.json"
    found = artifacts.read_json(path)
    if not isinstance(found, dict) or found.get("model_type") != "clip":
        kind = found.get("model_type") if isinstance(found, dict) else None
        raise UserError(f"{path}: model_type is `{kind}`; only folders of a CLIPModel (`clip`) are converted")
    config = _complete_config(folder)
    model_config = _model_config(config, path)
    preprocess = _preprocess(folder / "preprocessor_config.json")
    return Converted(model_config, preprocess, convert_hugging_face(_read_folder(folder), folder))


def _complete_config(folder: Path) -> Any:
    """Read the folder's configuration with transformers' defaults for the keys it leaves out."""
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder}: a Hugging Face folder needs the package transformers; pip install it") from None
    return transformers.CLIPConfig.from_pretrained(folder)


def _model_config(config: Any, path: Path) -> dict[str, Any]:
    """Translate a transformers.CLIPConfig into open_clip's model_cfg."""
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"{path}: hidden_act is `{vision.hidden_act}` (image) and `{text.hidden_act}` (text); "
            f"open_clip has one for both, of {', '.join(_ACTIVATIONS)}"
        )
    if vision.hidden_size % vision.num_attention_heads or vision.num_channels != 3:
        raise UserError(f"{path}: vision_config has a width or channels that open_clip's image tower cannot have")
    # transformers pools at the largest id where eos_token_id is 2 (its old default), else at the first eos_token_id.
    pooling = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": _ACTIVATIONS[vision.hidden_act],
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            **_norm(vision.layer_norm_eps),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            **_norm(text.layer_norm_eps),
            **pooling,
        },
    }


def _norm(eps: float) -> dict[str, Any]:
    return {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}  # open_clip's default


def _preprocess(path: Path) -> dict[str, Any]:
    """Translate preprocessor_config.json into keys of open_clip's preprocess_cfg; {} where there is no such file."""
    if not path.is_file():
        return {}
    found = artifacts.read_json(path)
    resampling = found.get("resample", 3)
    if resampling not in _RESAMPLING:
        raise UserError(f"{path}: resample is {resampling}; open_clip resizes bicubic (3) or bilinear (2)")
    size = found.get("size")
    squash = isinstance(size, dict) and "height" in size and not found.get("do_center_crop", True)
    given = {"mean": found.get("image_mean"), "std": found.get("image_std")}
    return {
        **{key: value for key, value in given.items() if value is not None},
        "interpolation": _RESAMPLING[resampling],
        "resize_mode": "squash" if squash else "shortest",
    }


def _read_folder(folder: Path) -> Tensors:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = sorted(set(artifacts.read_json(index)["weight_map"].values()))
        return {name: value for part in parts for name, value in read_checkpoint(folder / Path(part).name).items()}
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return read_checkpoint(folder / name)
    raise UserError(f"{folder}: no {' or '.join(names)}")


def vocabulary(folder: Path) -> dict[str, int]:
    """Read the token ids by token from a Hugging Face tokenizer's files; {} where there are none."""
    if (folder / "tokenizer.json").is_file():
        return artifacts.read_json(folder / "tokenizer.json")["model"]["vocab"]
    if (folder / "vocab.json").is_file():
        return artifacts.read_json(folder / "vocab.json")
    return {}


def convert_hugging_face(tensors: Mapping[str, torch.Tensor], folder: Path = Path()) -> Tensors:
    """Return CLIPModel's tensors under open_clip's names; `folder` is where they come from, for the message.

    Raises:
        UserError: A tensor is missing, or belongs to no part of a CLIPModel.
    """
    left = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        converted = dict(_convert(left))
    except KeyError as error:
        raise UserError(f"{folder}: tensor {error} is missing; not a whole CLIPModel") from None
    if left:
        raise UserError(f"{folder}: tensor `{next(iter(left))}` belongs to no part of a CLIPModel")
    return converted


def _convert(left: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Take every tensor out of `left` and yield it under open_clip's name."""
    take = left.pop
    yield "logit_scale", take("logit_scale")
    yield "text_projection", take("text_projection.weight").T.contiguous()
    yield "visual.proj", take("visual_projection.weight").T.contiguous()
    yield "token_embedding.weight", take("text_model.embeddings.token_embedding.weight")
    yield "positional_embedding", take("text_model.embeddings.position_embedding.weight")
    yield "visual.class_embedding", take("vision_model.embeddings.class_embedding")
    yield "visual.conv1.weight", take("vision_model.embeddings.patch_embedding.weight")
    yield "visual.positional_embedding", take("vision_model.embeddings.position_embedding.weight")
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled so there
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for own, theirs in norms.items():
        for kind in ("weight", "bias"):
            yield f"{own}.{kind}", take(f"{theirs}.{kind}")
    for own, theirs in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        layers = {int(m.group(1)) for name in left if (m := re.match(rf"{theirs}\.encoder\.layers\.(\d+)\.", name))}
        for layer in sorted(layers):
            yield from _convert_layer(f"{own}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}", left)


def _convert_layer(own: str, theirs: str, left: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    same = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for kind in ("weight", "bias"):
        stacked = [left.pop(f"{theirs}.self_attn.{part}_proj.{kind}") for part in "qkv"]
        yield f"{own}.attn.in_proj_{kind}", torch.cat(stacked)
        for part, name in same.items():
            yield f"{own}.{part}.{kind}", left.pop(f"{theirs}.{name}.{kind}")
