"""The tuples that travel between model, losses, recipes and metrics. Shapes: B pairs, D feature width.

Names follow open_clip, with one distinction it leaves implicit: `raw_*_features` are the towers' projections as they
come, `image_features` / `text_features` are L2-normalised, `logit_scale` is already exponentiated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

SAME = 1e-5  # relative spread below which rows count as one and the same


class Inputs(NamedTuple):
    """B pairs as the towers take them."""

    images: torch.Tensor  # uint8 [B, 3, H, W]; of a locked tower its raw features, float32 [B, D]
    texts: torch.Tensor  # token ids, int64 [B, L]; or features of a language model, float32 [B, W]


class Features(NamedTuple):
    """Raw features of B pairs and the model's own multiplier on cosines."""

    raw_image_features: torch.Tensor  # [B, D]
    raw_text_features: torch.Tensor  # [B, D]
    logit_scale: torch.Tensor  # scalar, exponentiated

    @property
    def image_features(self) -> torch.Tensor:
        """Return the image features with unit rows, [B, D]."""
        return l2_normalize(self.raw_image_features)

    @property
    def text_features(self) -> torch.Tensor:
        """Return the text features with unit rows, [B, D]."""
        return l2_normalize(self.raw_text_features)


def raw_norms_problem(image_norm: float, text_norm: float, logit_scale: float) -> str | None:
    """Say what is wrong with raw dot products as logits where the norms are such on average; None within a factor of 3.

    A softmax over cosines times the logit scale is what the model was trained with.
    """
    product = image_norm * text_norm
    if 1 / 3 <= product / logit_scale <= 3:
        return None
    return (
        f"the product of the raw norms ({product:.1f}) is far from the model's logit scale ({logit_scale:.1f}): raw "
        f"dot products make its softmax too {'sharp' if product > logit_scale else 'flat'}; consider "
        "a recipe with `logits: scaled_cosine`"
    )


def row_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest ‖found − expected‖ / ‖expected‖ of a row, [N, D] each; NaN where a row is."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def fault(features: torch.Tensor, num_distinct: int) -> str | None:
    """Say why raw features [N, D] of `num_distinct` different inputs cannot mean anything; None if they can."""
    norms = features.norm(dim=-1)
    if not features.isfinite().all():
        return f"{int((~features.isfinite().all(dim=-1)).sum())} of {len(features)} are not finite"
    if not (norms > 0).all():
        return f"{int((norms == 0).sum())} of {len(features)} are zero"
    if num_distinct > 1 and float((features - features[0]).abs().max()) <= SAME * float(norms[0]):
        return f"all {len(features)} are the same, of {num_distinct} different inputs"
    return None


def l2_normalize(raw_features: torch.Tensor) -> torch.Tensor:
    """Divide rows by their L2 norm: [..., D] -> [..., D]."""
    return F.normalize(raw_features, dim=-1)
