"""The configuration of transformers' SiglipModel in open_clip's terms: its own text tower, an image tower of timm's.

The image towers that timm names after SigLIP have sizes and an activation that are not those of every SiglipModel: most
take the exact GELU, transformers' its tanh form. So the tower is described in full in the folder's config.json, where
timm reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib import model
from pipeline_lib.base.kinds import text_sizes
from pipeline_lib.core.errors import UserError

_TEXT = {"gelu": {}, "gelu_pytorch_tanh": {"act_kwargs": {"approximate": "tanh"}}}  # hidden_act as open_clip has it
_IMAGE = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # and as timm calls it
_EPS = 1e-6  # of every layer norm of timm's ViTs
_ARCHITECTURE = "vit_base_patch16_siglip_224"  # all of whose sizes are given beside it


def model_config(config: Any, path: Path) -> dict[str, Any]:
    """Translate a transformers.SiglipConfig into open_clip's model_cfg; `path` is named in errors.

    Raises:
        UserError: open_clip cannot express it.
    """
    _refuse_inexpressible(config, path)
    vision, text = config.vision_config, config.text_config
    return {
        "embed_dim": vision.hidden_size,
        "custom_text": True,
        "init_logit_bias": 0.0,  # that there is one; the weights say which
        "vision_cfg": {
            "image_size": _side(vision.image_size),
            "timm_model_name": model.DESCRIBED,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **text_sizes(text),
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **_TEXT[text.hidden_act],
        },
    }


def image_tower(config: Any) -> dict[str, Any]:
    """Describe the image tower as timm reads it from a folder's config.json."""
    vision = config.vision_config
    sizes = {
        "img_size": _side(vision.image_size),
        "patch_size": _side(vision.patch_size),
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        "act_layer": _IMAGE[vision.hidden_act],
    }
    return {"architecture": _ARCHITECTURE, "num_classes": 0, "pretrained_cfg": {}, "model_args": sizes}


def refuse_tokenizer(tokenizer: Any, context_length: int, folder: Path) -> None:
    """Refuse a tokenizer that goes with another way to run the model: texts are padded to the full length, unmasked.

    Raises:
        UserError: See above.
    """
    path = folder / "tokenizer_config.json"
    if "attention_mask" in tokenizer.model_input_names:
        raise UserError(
            f"{path}: model_input_names has attention_mask, which hides padding from the text tower; open_clip's "
            'SigLIP sees it, as SigLIP is trained; write ["input_ids"] if yours is too'
        )
    if tokenizer.model_max_length < context_length:
        raise UserError(
            f"{path}: model_max_length is {tokenizer.model_max_length}, but the text tower reads {context_length} "
            "tokens and pools at the last; write that number if texts were padded to it"
        )


def _refuse_inexpressible(config: Any, path: Path) -> None:
    vision, text = config.vision_config, config.text_config
    for side, known in ((vision, _IMAGE), (text, _TEXT)):
        if side.hidden_act not in known:
            raise UserError(
                f"{path}: hidden_act is `{side.hidden_act}` in {side.base_config_key}; open_clip's SigLIP has "
                f"{' or '.join(known)}"
            )
        if side.hidden_size % side.num_attention_heads:
            raise UserError(f"{path}: hidden_size of {side.base_config_key} is no multiple of num_attention_heads")
    if vision.layer_norm_eps != _EPS:
        raise UserError(f"{path}: layer_norm_eps of vision_config is {vision.layer_norm_eps}; timm's ViTs have {_EPS}")
    if not getattr(vision, "vision_use_head", True):
        raise UserError(f"{path}: vision_use_head is false, and without its head the image tower gives no features")
    if vision.num_channels != 3 or not _side(vision.image_size) or not _side(vision.patch_size):
        raise UserError(f"{path}: vision_config has an input other than a square of three channels")
    projection = getattr(text, "projection_size", text.hidden_size)  # some versions of transformers have none
    if projection != vision.hidden_size:
        raise UserError(
            f"{path}: projection_size of text_config is {projection}, hidden_size of vision_config "
            f"{vision.hidden_size}; images and texts would get features of different widths"
        )


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    """Return the side of a square, 0 for anything else."""
    sides = {size} if isinstance(size, int) else set(size)
    return sides.pop() if len(sides) == 1 else 0
