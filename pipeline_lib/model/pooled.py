"""open_clip's own transformers, whose last layer is computed at the pooled position alone.

A tower reads one position of each sequence: the class token of an image, the end-of-text token of a caption. Of the
last layer only its keys and values are needed at the others; its queries, its projection and its MLP there are thrown
away, 1/14 of all that a ViT-B/32 multiplies, forward and backward. The features are open_clip's to rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def pools_class_token(visual: nn.Module) -> bool:
    """Tell whether an image tower is a ViT of open_clip's own that reads the class token."""
    return type(visual) is VisionTransformer and visual.pool_type == "tok" and visual.attn_pool is None


def class_token_features(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the raw features [B, D] of normalised images [B, 3, H, W], where `pools_class_token`."""
    x = visual._embeds(images)
    x = visual.ln_post(at_position(visual.transformer, x, torch.zeros_like(x[:, 0, 0], dtype=torch.int64)))
    return x if visual.proj is None else x @ visual.proj


def end_of_text_features(text: Any, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the raw features [B, D] of token ids [B, L], read at `positions` [B] by a causal text tower.

    L may be less than the tower's context: its own forward pass of open_clip.CLIP adds the whole positional table.
    """
    length, cast = token_ids.shape[1], text.transformer.get_cast_dtype()
    x = text.token_embedding(token_ids).to(cast) + text.positional_embedding[:length].to(cast)
    x = text.ln_final(at_position(text.transformer, x, positions, text.attn_mask[:length, :length]))
    if text.text_projection is None:
        return x
    return text.text_projection(x) if isinstance(text.text_projection, nn.Linear) else x @ text.text_projection


def at_position(
    transformer: Any, x: torch.Tensor, positions: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return row `positions[b]` of what `transformer` makes of x[b], [B, W] of x [B, L, W]; `attn_mask` is [L, L]."""
    *before, last = transformer.resblocks
    kinds = type(transformer), type(last), transformer.batch_first
    if kinds != (Transformer, ResidualAttentionBlock, True):
        return _rows(transformer(x, attn_mask=attn_mask), positions)
    call = functools.partial(checkpoint, use_reentrant=False) if transformer.grad_checkpointing else _call
    for block in before:
        x = call(block, x, None, None, attn_mask)
    return call(_last_layer, last, x, positions, attn_mask)


def _last_layer(
    block: ResidualAttentionBlock, x: torch.Tensor, positions: torch.Tensor, attn_mask: torch.Tensor | None
) -> torch.Tensor:
    """Do what the block does, with one query a sequence."""
    normed = block.ln_1(x)
    query = _rows(normed, positions)[:, None]
    if attn_mask is not None:  # [L, L] to [B · heads, 1, L], as torch's attention asks for masks that differ in a batch
        attn_mask = attn_mask.to(x.dtype)[positions, None].repeat_interleave(block.attn.num_heads, dim=0)
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel shares one query among threads by its place in the pass
        seen = block.attn(query, normed, normed, need_weights=False, attn_mask=attn_mask)[0][:, 0]
    x = _rows(x, positions) + block.ls_1(seen)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _rows(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(len(x), device=x.device), positions]


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)
