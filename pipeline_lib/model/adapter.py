"""The small trained map from a language model's features into the space that images and texts share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """What an adapter is made of."""

    depth: int  # residual blocks; 0: one linear map and nothing else
    expansion: int  # of a block's inner width
    dropout: float


def num_weights(width: int, embed_dim: int, shape: Shape) -> int:
    """Count the weights of an adapter without making it.

    >>> num_weights(384, 256, Shape(depth=0, expansion=2, dropout=0.0))
    98304
    """
    inner = shape.expansion * width
    block = 2 * width * inner + inner + width + 2 * width
    head = width * embed_dim + (embed_dim + 2 * width if shape.depth else 0)
    return shape.depth * block + head


class Block(nn.Module):
    """Adds W₂ GELU(W₁ LN(x)) to x, [..., W] each."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, shape.expansion * width)
        self.narrow = nn.Linear(shape.expansion * width, width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate the block."""
        return x + self.narrow(self.dropout(F.gelu(self.widen(self.norm(x)))))


class Adapter(nn.Module):
    """Maps a language model's features [..., W] to raw text features [..., D].

    At depth 0 by one matrix: a text projection as CLIP has it, in which normalising the features first changes no
    cosine. Deeper: the features are L2-normalised, pass `depth` residual blocks, a layer norm and a linear map with
    bias, as in LLM2CLIP (arXiv 2411.04997; order of the layers checked against its released `TextProj`).
    """

    def __init__(self, width: int, embed_dim: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Block(width, shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width) if shape.depth else nn.Identity()
        self.proj = nn.Linear(width, embed_dim, bias=bool(shape.depth))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Evaluate the map."""
        x = F.normalize(features, dim=-1) if self.shape.depth else features
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x))
