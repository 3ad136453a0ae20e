"""What decides the forward pass of SigLIP's kind of dual encoder, read from its modules.

Its image tower is a ViT of timm's that pools by attention, its text tower open_clip's own, unmasked and pooled at the
last token. What adds tensors to that is not looked for here: whoever takes the tensors by name finds them left over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import open_clip.timm_model
import open_clip.transformer
import timm.layers
import timm.models
from timm.models.vision_transformer import Block
from torch import nn

from pipeline_lib.model.clip import Clip
from pipeline_lib.model.native import Tower, activation_name, describe_transformer, foreign_texts


class Siglip(NamedTuple):
    """Both towers, and what surrounds them."""

    image: Tower
    text: Tower
    image_size: int
    patch_size: int
    context_length: int
    vocab_size: int
    embed_dim: int


def pools_by_attention(clip: Clip) -> bool:
    """Tell whether the image tower is one of timm's that pools as SigLIP's does."""
    visual = clip.module.visual
    return isinstance(visual, open_clip.timm_model.TimmModel) and isinstance(
        getattr(visual.trunk, "attn_pool", None), timm.layers.AttentionPoolLatent
    )


def describe_siglip(clip: Clip) -> Siglip | str:
    """Describe `clip`, whose image tower pools by attention, or say which part of it is of another kind."""
    trunk, text = clip.module.visual.trunk, clip.text_tower
    if foreign := foreign_texts(clip):
        return foreign
    if not isinstance(text, open_clip.transformer.TextTransformer):
        return f"the text tower, a {type(text).__name__}"
    if text.attn_mask is not None or text.pool_type != "last":
        return "the text tower, which is masked or does not pool at the last token"
    if not isinstance(text.text_projection, nn.Linear):
        return "the text tower without a head that has a bias"
    image, words = _image_tower(trunk), describe_transformer(text.transformer, text.ln_final)
    if isinstance(image, str) or isinstance(words, str):
        return f"the image tower's {image}" if isinstance(image, str) else f"the text tower's {words}"
    (height, width), patch = trunk.patch_embed.img_size, trunk.patch_embed.patch_size
    if height != width or patch[0] != patch[1]:
        return f"the image tower's input of {height} × {width} pixels"
    return Siglip(
        image,
        words,
        image_size=height,
        patch_size=patch[0],
        context_length=text.positional_embedding.shape[0],
        vocab_size=text.token_embedding.num_embeddings,
        embed_dim=clip.embed_dim,
    )


def _image_tower(trunk: Any) -> Tower | str:
    """Describe timm's ViT, or say which part of it is of another kind."""
    if type(trunk) is not timm.models.VisionTransformer:
        return f"kind, a {type(trunk).__name__}"
    blocks, pool = list(trunk.blocks), trunk.attn_pool
    parts = [*blocks, pool]
    norms = [trunk.norm, pool.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    kinds = {type(part) for part in (*blocks, *(part.mlp for part in parts), *norms)}
    kinds = {kind for kind in kinds if not issubclass(kind, (Block, timm.layers.Mlp, nn.LayerNorm))}
    kinds |= {type(part.mlp.act) for part in parts if not kinds and activation_name(part.mlp.act) is None}
    if kinds:
        return f"layers of kind {kinds.pop().__name__}"
    heads = {pool.num_heads, *(block.attn.num_heads for block in blocks)}
    widths, eps = {part.mlp.fc1.out_features for part in parts}, {norm.eps for norm in norms}
    activations = {str(activation_name(part.mlp.act)) for part in parts}
    if any(len(values) > 1 for values in (heads, widths, eps, activations)):
        return "layers, which differ"
    return Tower(trunk.embed_dim, len(blocks), heads.pop(), widths.pop(), activations.pop(), eps.pop())
