"""The tensors of transformers' CLIPModel beside open_clip's, as one table that is read both ways.

Both are the same pre-norm transformer. They differ in names, in where the query, key and value matrices are stacked
(open_clip keeps them as one, in that order), and in the side from which a projection multiplies (`x @ P` against
`Linear`, hence a transpose).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from pipeline_lib.base.checkpoints import Tensors


class Pair(NamedTuple):
    """One tensor of open_clip and what it is made of."""

    own: str  # open_clip's name
    theirs: tuple[str, ...]  # transformers' names; several are stacked
    transposed: bool = False


_WHOLE = (
    Pair("logit_scale", ("logit_scale",)),
    Pair("text_projection", ("text_projection.weight",), transposed=True),
    Pair("visual.proj", ("visual_projection.weight",), transposed=True),
    Pair("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
    Pair("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
    Pair("visual.class_embedding", ("vision_model.embeddings.class_embedding",)),
    Pair("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)),
    Pair("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)),
)
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled so there
    "visual.ln_post": "vision_model.post_layernorm",
}
_TOWERS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def to_open_clip(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """Return CLIPModel's tensors under open_clip's names, and those that no name of open_clip is for.

    Raises:
        KeyError: A tensor is missing.
    """
    left: Tensors = dict(tensors)
    found: Tensors = {}
    for pair in _pairs(tensors, _TOWERS.values()):
        parts = [left.pop(name) for name in pair.theirs]
        found[pair.own] = torch.cat(parts) if len(parts) > 1 else parts[0]
        if pair.transposed:
            found[pair.own] = found[pair.own].T.contiguous()
    return found, left


def to_transformers(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    """Return open_clip's tensors under CLIPModel's names, and those that no name of CLIPModel is for.

    Raises:
        KeyError: A tensor is missing.
    """
    left: Tensors = dict(tensors)
    found: Tensors = {}
    for pair in _pairs(tensors, _TOWERS):
        whole = left.pop(pair.own)
        whole = whole.T if pair.transposed else whole
        parts = whole.chunk(len(pair.theirs)) if len(pair.theirs) > 1 else [whole]
        found |= {name: part.contiguous() for name, part in zip(pair.theirs, parts, strict=True)}
    return found, left


def _pairs(names: Iterable[str], towers: Iterable[str]) -> Iterator[Pair]:
    """Yield the whole table for as many layers as `names` have below each of `towers`."""
    yield from _WHOLE
    for own, theirs in _NORMS.items():
        yield from _weight_and_bias(own, theirs)
    for (own, theirs), prefix in zip(_TOWERS.items(), towers, strict=True):
        layers = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        for layer in sorted(layers):
            for kind in ("weight", "bias"):
                stacked = tuple(f"{theirs}.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                yield Pair(f"{own}.{layer}.attn.in_proj_{kind}", stacked)
            for inner, their_inner in _LAYER.items():
                yield from _weight_and_bias(f"{own}.{layer}.{inner}", f"{theirs}.{layer}.{their_inner}")


def _weight_and_bias(own: str, theirs: str) -> Iterator[Pair]:
    return (Pair(f"{own}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias"))
