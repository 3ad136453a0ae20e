"""What decides the forward pass of OpenAI's kind of CLIP, read from its modules: two transformers that project.

Other libraries know that kind alone. What open_clip can add to it (attention pools, scales of layers, class tokens of
texts, attention to both sides) is named instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import open_clip
import open_clip.hf_model
import open_clip.timm_model
import open_clip.transformer
import timm.layers
from torch import nn

from pipeline_lib.model.clip import Clip
from pipeline_lib.model.joined import JoinedClip


class Tower(NamedTuple):
    """One transformer."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str  # as transformers calls it
    eps: float  # of every layer norm


class Native(NamedTuple):
    """Both towers, and what surrounds them."""

    image: Tower
    text: Tower
    image_size: int
    patch_size: int
    context_length: int
    vocab_size: int
    eos_id: int | None  # texts are pooled at the first of it; None: at the largest id
    embed_dim: int


def describe_native(clip: Clip) -> Native | str:
    """Describe `clip`, or say which part of it is of another kind."""
    visual, text = clip.module.visual, clip.text_tower
    foreign = _foreign_image_tower(visual) or _foreign_text_tower(clip)
    if foreign:
        return foreign
    image, words = (
        describe_transformer(visual.transformer, visual.ln_pre, visual.ln_post),
        describe_transformer(text.transformer, text.ln_final),
    )
    if isinstance(image, str) or isinstance(words, str):
        return f"the image tower's {image}" if isinstance(image, str) else f"the text tower's {words}"
    pooling, eos_id = clip.text_pooling
    return Native(
        image,
        words,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        context_length=text.positional_embedding.shape[0],
        vocab_size=text.token_embedding.num_embeddings,
        eos_id=eos_id if pooling == "eos" else None,
        embed_dim=clip.embed_dim,
    )


def _foreign_image_tower(visual: Any) -> str:
    if isinstance(visual, open_clip.timm_model.TimmModel):
        return "the image tower, one of timm's"
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        return f"the image tower, a {type(visual).__name__}"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "the image tower's pooling, which is not at the class token"
    if visual.image_size[0] != visual.image_size[1] or visual.patch_size[0] != visual.patch_size[1]:
        return f"the image tower's input of {visual.image_size[0]} × {visual.image_size[1]} pixels"
    return "" if isinstance(visual.ln_pre, nn.LayerNorm) else "the image tower without its first layer norm"


def foreign_texts(clip: Clip) -> str:
    """Say what reads the texts where that is no text tower of open_clip's own; empty where it is."""
    if isinstance(clip, JoinedClip):
        return "the text side, a language model with an adapter"
    if isinstance(clip.text_tower, open_clip.hf_model.HFTextEncoder):
        return f"the text tower, transformers' {type(clip.text_tower.transformer).__name__}"
    return ""


def _foreign_text_tower(clip: Clip) -> str:
    text = clip.text_tower
    if foreign := foreign_texts(clip):
        return foreign
    if clip.text_cut_refusal:
        return f"the text tower: {clip.text_cut_refusal}"
    if not isinstance(text.text_projection, nn.Parameter):
        return "the text tower's head"
    return "" if clip.logit_bias is None else "the logit bias"


def describe_transformer(transformer: Any, *norms: Any) -> Tower | str:
    """Describe one of open_clip's own towers, or say which part of it is of another kind."""
    blocks = list(transformer.resblocks)
    first = blocks[0]
    kinds = {type(block) for block in blocks} - {open_clip.transformer.ResidualAttentionBlock}
    if kinds:
        return f"layers of kind {kinds.pop().__name__}"
    activation = activation_name(first.mlp.gelu)
    if activation is None:
        return f"activation {type(first.mlp.gelu).__name__}"
    eps = {norm.eps for norm in (*norms, *(norm for block in blocks for norm in (block.ln_1, block.ln_2)))}
    if len(eps) > 1:
        return "layer norms, which differ in eps"
    return Tower(
        width=transformer.width,
        layers=len(blocks),
        heads=first.attn.num_heads,
        mlp_width=first.mlp.c_fc.out_features,
        activation=activation,
        eps=eps.pop(),
    )


def activation_name(module: nn.Module) -> str | None:
    """Return what transformers calls an activation of open_clip's or timm's; None where it has none of these."""
    if isinstance(module, open_clip.transformer.QuickGELU):
        return "quick_gelu"
    if isinstance(module, timm.layers.GELUTanh):
        return "gelu_pytorch_tanh"
    if isinstance(module, timm.layers.GELU):
        return "gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    return None
