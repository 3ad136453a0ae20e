"""Hugging Face CLIPModel folders in open_clip's terms: configuration, tokenizer, weights; images: see `processors`.

What open_clip cannot express is refused by file and key, never left out; `agreement` then compares the converted model
with transformers' own.

The conversion of weights follows from the two models' definitions. Both are the same pre-norm transformer; they differ
in where the query, key and value matrices are stacked (open_clip keeps them as one, in that order), in the side from
which a projection multiplies (`x @ P` against `Linear`, hence a transpose), and in names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline_lib import model
from pipeline_lib.base import checkpoints, processors
from pipeline_lib.base.checkpoints import Tensors
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError, first_lines

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


class Converted(NamedTuple):
    """A model in open_clip's terms, and what transformers needs to run it itself."""

    model_config: dict[str, Any]
    preprocess: dict[str, Any]
    tensors: Tensors
    config: Any  # transformers.CLIPConfig
    processor: Any  # transformers' image processor; None where the folder has none
    theirs: Tensors  # by transformers' names


def read_folder(folder: Path) -> Converted:
    """Read a CLIPModel folder in open_clip's terms: config.json, the image processor's settings, the weights.

    Raises:
        UserError: It holds another kind of model, or one that open_clip's CLIP cannot express.
    """
    config = read_config(folder)
    model_config = _model_config(config, folder / "config.json")
    processor, preprocess = processors.read_processor(folder, model_config["vision_cfg"]["image_size"])
    theirs = _read_weights(folder)
    return Converted(model_config, preprocess, convert_weights(theirs, folder), config, processor, theirs)


def read_config(folder: Path) -> Any:
    """Read config.json as a transformers.CLIPConfig, which has transformers' defaults for the keys it leaves out.

    Raises:
        UserError: It describes another kind of model, or transformers is not installed.
    """
    path = folder / "config.json"
    found = artifacts.read_json(path)
    if not isinstance(found, dict) or found.get("model_type") != "clip":
        kind = found.get("model_type") if isinstance(found, dict) else None
        raise UserError(f"{path}: model_type is `{kind}`; only folders of a CLIPModel (`clip`) are converted")
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder}: a Hugging Face folder needs the package transformers; pip install it") from None
    try:
        return transformers.CLIPConfig.from_pretrained(folder)
    except Exception as error:  # its validation raises types of its own
        raise UserError(f"{path}: not the configuration of a CLIPModel ({first_lines(error)})") from error


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


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a tokenizer lies in the folder, whole and without code of its own.

    A vocabulary alone is none where it is OpenAI's: the merges that belong to it are known.

    Raises:
        UserError: It is not whole, or transformers would run code to read it.
    """
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in artifacts.read_json(settings):
        raise UserError(f"{settings}: auto_map names code that comes with the tokenizer, and it is not run")
    if (folder / "tokenizer.json").is_file():
        return True
    parts = [folder / "vocab.json", folder / "merges.txt"]
    missing = [part.name for part in parts if not part.is_file()]
    if missing == ["merges.txt"] and artifacts.read_json(parts[0]) == model.standard_vocabulary():
        return False
    if len(missing) == 1:
        raise UserError(f"{folder}: half a tokenizer, {missing[0]} is missing; copy it there, or tokenizer.json")
    return not missing


def _read_weights(folder: Path) -> Tensors:
    """Read the weights in the order in which transformers looks for them."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            found = checkpoints.read(folder / name)
            return {key: value for key, value in found.items() if not key.endswith("position_ids")}
    raise UserError(f"{folder}: no {' or '.join(_WEIGHTS[::2])}, whole or in shards with their index")


def is_named_so(tensors: Mapping[str, Any]) -> bool:
    """Tell whether tensors go by CLIPModel's names."""
    return {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"} <= tensors.keys()


def convert_weights(tensors: Mapping[str, torch.Tensor], origin: Path | str) -> Tensors:
    """Return CLIPModel's tensors under open_clip's names; `origin` is where they come from, for the message.

    Raises:
        UserError: A tensor is missing, or belongs to no part of a CLIPModel.
    """
    left = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        converted = dict(_convert(left))
    except KeyError as error:
        raise UserError(f"{origin}: tensor {error} is missing; not a whole CLIPModel") from None
    if left:
        raise UserError(f"{origin}: tensor `{next(iter(left))}` belongs to no part of a CLIPModel")
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
