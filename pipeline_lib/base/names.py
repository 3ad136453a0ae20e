"""The tensors of transformers' CLIPModel and SiglipModel beside open_clip's, as tables that are read both ways.

Both sides are the same pre-norm transformers. They differ in names, in which of the query, key and value matrices are
stacked (in that order), in the side from which a projection multiplies (`x @ P` against `Linear`, hence a transpose),
and in a leading dimension of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from pipeline_lib.base.checkpoints import Tensors


class Pair(NamedTuple):
    """One or several tensors of open_clip, stacked, and those of transformers, stacked likewise."""

    own: tuple[str, ...]  # open_clip's names
    theirs: tuple[str, ...]  # transformers' names
    transposed: bool = False
    leading: bool = False  # open_clip's has a dimension of one before the others


class Layers(NamedTuple):
    """The layers of one tower."""

    own: str  # what stands before the number of a layer
    theirs: str
    stacked: str  # how open_clip calls query, key and value, before `weight` or `bias`
    inner: Mapping[str, str]  # parts with weight and bias


class Table(NamedTuple):
    """All tensors of a kind of model."""

    whole: tuple[Pair, ...]
    parts: Mapping[str, str]  # with weight and bias
    towers: tuple[Layers, ...]


_ATTENTION = "self_attn"
_OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": f"{_ATTENTION}.out_proj",
}
_TIMM = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.proj": f"{_ATTENTION}.out_proj",
}
CLIP = Table(
    whole=(
        Pair(("logit_scale",), ("logit_scale",)),
        Pair(("text_projection",), ("text_projection.weight",), transposed=True),
        Pair(("visual.proj",), ("visual_projection.weight",), transposed=True),
        Pair(("token_embedding.weight",), ("text_model.embeddings.token_embedding.weight",)),
        Pair(("positional_embedding",), ("text_model.embeddings.position_embedding.weight",)),
        Pair(("visual.class_embedding",), ("vision_model.embeddings.class_embedding",)),
        Pair(("visual.conv1.weight",), ("vision_model.embeddings.patch_embedding.weight",)),
        Pair(("visual.positional_embedding",), ("vision_model.embeddings.position_embedding.weight",)),
    ),
    parts={
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled so there
        "visual.ln_post": "vision_model.post_layernorm",
    },
    towers=(
        Layers("transformer.resblocks", "text_model.encoder.layers", "attn.in_proj_", _OPEN_CLIP),
        Layers("visual.transformer.resblocks", "vision_model.encoder.layers", "attn.in_proj_", _OPEN_CLIP),
    ),
)
_POOL, _HEAD = "visual.trunk.attn_pool", "vision_model.head"
SIGLIP = Table(
    whole=(
        Pair(("logit_scale",), ("logit_scale",)),
        Pair(("logit_bias",), ("logit_bias",)),
        Pair(("text.token_embedding.weight",), ("text_model.embeddings.token_embedding.weight",)),
        Pair(("text.positional_embedding",), ("text_model.embeddings.position_embedding.weight",)),
        Pair(("visual.trunk.pos_embed",), ("vision_model.embeddings.position_embedding.weight",), leading=True),
        Pair((f"{_POOL}.latent",), (f"{_HEAD}.probe",)),
        *(
            Pair((f"{_POOL}.q.{kind}", f"{_POOL}.kv.{kind}"), (f"{_HEAD}.attention.in_proj_{kind}",))
            for kind in ("weight", "bias")
        ),
    ),
    parts={
        "text.ln_final": "text_model.final_layer_norm",
        "text.text_projection": "text_model.head",
        "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "visual.trunk.norm": "vision_model.post_layernorm",
        f"{_POOL}.proj": f"{_HEAD}.attention.out_proj",
        f"{_POOL}.norm": f"{_HEAD}.layernorm",
        f"{_POOL}.mlp.fc1": f"{_HEAD}.mlp.fc1",
        f"{_POOL}.mlp.fc2": f"{_HEAD}.mlp.fc2",
    },
    towers=(
        Layers("text.transformer.resblocks", "text_model.encoder.layers", "attn.in_proj_", _OPEN_CLIP),
        Layers("visual.trunk.blocks", "vision_model.encoder.layers", "attn.qkv.", _TIMM),
    ),
)


def to_open_clip(tensors: Mapping[str, torch.Tensor], table: Table) -> tuple[Tensors, Tensors]:
    """Return transformers' tensors under open_clip's names, and those that no name of open_clip is for.

    Raises:
        KeyError: A tensor is missing.
    """
    left: Tensors = dict(tensors)
    found: Tensors = {}
    for pair in _pairs(tensors, table, [tower.theirs for tower in table.towers]):
        whole = _stacked([left.pop(name) for name in pair.theirs])
        whole = whole.T.contiguous() if pair.transposed else whole[None] if pair.leading else whole
        found |= _named(pair.own, whole)
    return found, left


def to_transformers(tensors: Mapping[str, torch.Tensor], table: Table) -> tuple[Tensors, Tensors]:
    """Return open_clip's tensors under transformers' names, and those that no name of transformers is for.

    Raises:
        KeyError: A tensor is missing.
    """
    left: Tensors = dict(tensors)
    found: Tensors = {}
    for pair in _pairs(tensors, table, [tower.own for tower in table.towers]):
        whole = _stacked([left.pop(name) for name in pair.own])
        found |= _named(pair.theirs, whole.T if pair.transposed else whole[0] if pair.leading else whole)
    return found, left


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _named(names: tuple[str, ...], whole: torch.Tensor) -> Tensors:
    """Cut what is stacked into thirds, of which the last name takes all that are left."""
    cuts = [len(whole) * at // 3 for at in range(1, len(names))]
    parts = whole.tensor_split(cuts) if cuts else (whole,)
    return {name: part.contiguous() for name, part in zip(names, parts, strict=True)}


def _pairs(names: Iterable[str], table: Table, prefixes: Iterable[str]) -> Iterator[Pair]:
    """Yield the whole table for as many layers as `names` have below each of `prefixes`."""
    yield from table.whole
    for own, theirs in table.parts.items():
        yield from _weight_and_bias(own, theirs)
    for tower, prefix in zip(table.towers, prefixes, strict=True):
        layers = {int(m[1]) for name in names if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        for layer in sorted(layers):
            own, theirs = f"{tower.own}.{layer}", f"{tower.theirs}.{layer}"
            for kind in ("weight", "bias"):
                stacked = tuple(f"{theirs}.{_ATTENTION}.{part}_proj.{kind}" for part in "qkv")
                yield Pair((f"{own}.{tower.stacked}{kind}",), stacked)
            for inner, their_inner in tower.inner.items():
                yield from _weight_and_bias(f"{own}.{inner}", f"{theirs}.{their_inner}")


def _weight_and_bias(own: str, theirs: str) -> Iterator[Pair]:
    return (Pair((f"{own}.{kind}",), (f"{theirs}.{kind}",)) for kind in ("weight", "bias"))
