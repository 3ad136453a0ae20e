"""open_clip's own transformers, whose last layer is computed at the pooled position alone.

A tower reads one position of each sequence: the class token of an image, the end-of-text token of a caption. Of the
last layer only its keys and values are needed at the others; its queries, its projection and its MLP there are thrown
away, 1/15 of all that a ViT-B/32 multiplies, forward and backward. The features are open_clip's to rounding. Hooks on
the tower, its transformer and the last layer are not called.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint


def pools_class_token(visual: nn.Module) -> bool:
    """Tell whether an image tower is a ViT of open_clip's own that reads the class token."""
    return type(visual) is VisionTransformer and visual.pool_type == "tok" and visual.attn_pool is None


def class_token_features(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the raw features [B, D] of normalised images [B, 3, H, W], where `pools_class_token`."""
    x = visual._embeds(images)
    x = visual.ln_post(at_position(visual.transformer, x, x.new_zeros(len(x), dtype=torch.int64)))
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
    kinds = type(transformer), transformer.batch_first, type(last), type(last.attn)
    if kinds != (Transformer, True, ResidualAttentionBlock, nn.MultiheadAttention):
        return _rows(transformer(x, attn_mask=attn_mask), positions)
    call = functools.partial(checkpoint, use_reentrant=False) if transformer.grad_checkpointing else _call
    for block in before:
        x = call(block, x, None, None, attn_mask)
    return call(_last_layer, last, x, positions, attn_mask)


def _last_layer(block: Any, x: torch.Tensor, positions: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
    """Do what the block does, with one query a sequence."""
    mask = None if attn_mask is None else attn_mask[positions, None, None].to(x.dtype)  # [B, 1, 1, L]
    normed = block.ln_1(x)
    x = _rows(x, positions) + block.ls_1(_attend(block.attn, _rows(normed, positions), normed, mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attend(attention: Any, query: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return what one query [B, W] a sequence takes from `seen` [B, L, W]: [B, W].

    Its bits do not depend on its place in the pass. By torch's fused kernel, which shares a query's keys among threads,
    they would, and so with keys that are no block of memory.
    """
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q = F.linear(query, weight[:width], bias[:width]).unflatten(-1, (heads, 1, -1))  # [B, heads, 1, d]
    kv = F.linear(seen, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1))  # [B, L, 2, heads, d]
    k, v = kv.permute(2, 0, 3, 1, 4).contiguous()  # [B, heads, L, d]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    shares = (scores if mask is None else scores + mask).softmax(dim=-1)
    return attention.out_proj((shares @ v).flatten(1))


def _rows(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return x[torch.arange(len(x), device=x.device), positions]


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)
