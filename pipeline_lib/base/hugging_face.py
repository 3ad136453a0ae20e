"""Hugging Face CLIPModel and SiglipModel folders in open_clip's terms: configuration, tokenizer, weights.

What open_clip cannot express is refused by file and key, never left out; `agreement` then compares the converted model
with transformers' own. `names` has the tables of the weights, `siglip` the configuration of a SiglipModel, `processors`
what is done to images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline_lib import model
from pipeline_lib.base import checkpoints, names, processors, siglip
from pipeline_lib.base.checkpoints import Tensors
from pipeline_lib.base.kinds import CLIP, KINDS, SIGLIP, Kind, text_sizes
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError, first_lines

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model")  # each a whole tokenizer
ACTIVATIONS = {"quick_gelu": True, "gelu": False}  # of a CLIPModel: open_clip's `quick_gelu`


class Converted(NamedTuple):
    """A model in open_clip's terms, and what transformers needs to run it itself."""

    kind: Kind
    model_config: dict[str, Any]
    image_tower: dict[str, Any] | None  # as timm reads it from config.json; None: model_config says all
    preprocess: dict[str, Any]
    tensors: Tensors
    config: Any  # transformers.CLIPConfig or SiglipConfig
    processor: Any  # transformers' image processor; None where the folder has none
    theirs: Tensors  # by transformers' names


def read_folder(folder: Path) -> Converted:
    """Read a CLIPModel or SiglipModel folder in open_clip's terms: configuration, image processor's settings, weights.

    Raises:
        UserError: It holds another kind of model, or one that open_clip cannot express.
    """
    config = read_config(folder)
    kind = KINDS[config.model_type]
    translate = siglip.model_config if kind is SIGLIP else _model_config
    model_config = translate(config, folder / "config.json")
    image_tower = siglip.image_tower(config) if kind is SIGLIP else None
    processor, preprocess = processors.read_processor(folder, model_config["vision_cfg"]["image_size"], kind)
    theirs = _read_weights(folder)
    tensors = convert_weights(theirs, folder, kind)
    return Converted(kind, model_config, image_tower, preprocess, tensors, config, processor, theirs)


def read_config(folder: Path) -> Any:
    """Read config.json as a CLIPConfig or SiglipConfig, which have transformers' defaults for the keys it leaves out.

    Raises:
        UserError: It describes another kind of model, or transformers is not installed.
    """
    path = folder / "config.json"
    found = artifacts.read_json(path)
    name = found.get("model_type") if isinstance(found, dict) else None
    if name not in KINDS:
        siglip2 = (
            ", whose images are patches in any number; for SigLIP 2 use `source: open_clip` with "
            "`model: ViT-B-16-SigLIP2` and `pretrained: webli` or the like"
        )
        raise UserError(
            f"{path}: model_type is `{name}`{siglip2 if name == 'siglip2' else ''}; only folders of a CLIPModel "
            "(`clip`) or SiglipModel (`siglip`) are converted"
        )
    kind = KINDS[name]
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder}: a Hugging Face folder needs the package transformers; pip install it") from None
    try:
        return getattr(transformers, kind.config).from_pretrained(folder)
    except Exception as error:  # its validation raises types of its own
        raise UserError(f"{path}: not the configuration of a {kind.model} ({first_lines(error)})") from error


def _model_config(config: Any, path: Path) -> dict[str, Any]:
    """Translate a transformers.CLIPConfig into open_clip's model_cfg."""
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{path}: hidden_act is `{vision.hidden_act}` (image) and `{text.hidden_act}` (text); "
            f"open_clip has one for both, of {', '.join(ACTIVATIONS)}"
        )
    if vision.hidden_size % vision.num_attention_heads or vision.num_channels != 3:
        raise UserError(f"{path}: vision_config has a width or channels that open_clip's image tower cannot have")
    # transformers pools at the largest id where eos_token_id is 2 (its old default), else at the first eos_token_id.
    pooling = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": ACTIVATIONS[vision.hidden_act],
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
            **text_sizes(text),
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
    if any((folder / name).is_file() for name in _VOCABULARIES):
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


def is_named_so(tensors: Mapping[str, Any], origin: Path | str) -> bool:
    """Tell whether tensors go by CLIPModel's names; `origin` is where they come from, for the message.

    Raises:
        UserError: They go by SiglipModel's, whose configuration says more than the name of an architecture.
    """
    if {"text_model.head.weight", "vision_model.head.probe"} <= tensors.keys():
        raise UserError(
            f"{origin}: the tensors are those of transformers' SiglipModel, whose form of GELU only its config.json "
            "says; give the folder of both as base.path, with `source: checkpoint` and `model: null`"
        )
    return {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"} <= tensors.keys()


def convert_weights(tensors: Mapping[str, torch.Tensor], origin: Path | str, kind: Kind = CLIP) -> Tensors:
    """Return transformers' tensors under open_clip's names; `origin` is where they come from, for the message.

    Raises:
        UserError: A tensor is missing, or belongs to no part of such a model.
    """
    weights = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    try:
        converted, left = names.to_open_clip(weights, kind.table)
    except KeyError as error:
        raise UserError(f"{origin}: tensor {error} is missing; not a whole {kind.model}") from None
    if left:
        raise UserError(f"{origin}: tensor `{next(iter(left))}` belongs to no part of a {kind.model}")
    return converted
