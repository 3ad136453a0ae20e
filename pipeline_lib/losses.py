"""The losses, as pure functions: tensors in, one scalar out. No config, no device, no random numbers, no logging.

Shapes: B pairs, D feature width. `raw_*_features` are the towers' projections before L2 normalisation;
`*_logits` [B, B] are similarities of image rows against text columns, before any softmax.
Each loss computes in the precision it is given (fp64 in, fp64 out). Written from the paper's mathematics
("Post-pre-training for Modality Alignment in Vision-Language Foundation Models", arXiv 2504.12717, CVPR 2025).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Reduction = Literal["mean", "paper"]


def rafa_loss(
    raw_image_features: torch.Tensor,
    raw_text_features: torch.Tensor,
    reference: torch.Tensor,
    *,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Random feature alignment: both modalities of a pair are pulled to one shared random vector.

    `mean`: mean((f − z)²) + mean((g − z)²) over all B·D entries, the reduction of the published code;
    `paper`: 1/(2B) Σ (‖f − z‖² + ‖g − z‖²), which is D/2 times as large.
    Its expectation over z ~ N(μ, I) is L2 shrinkage of the raw features to μ plus a constant; on L2-normalised
    features with μ = 0 its expected gradient along the sphere is zero, so the features must be raw.
    Source: the paper's RaFA.

    Args:
        raw_image_features: f [B, D], not normalised.
        raw_text_features: g [B, D], not normalised.
        reference: z [B, D], or [2, B, D] for an independent z per modality.
        reduction: `mean` or `paper`.

    Raises:
        ValueError: Shapes differ or the reduction is unknown.
    """
    _check_pairs(raw_image_features, raw_text_features)
    shape = raw_image_features.shape
    if reference.shape not in (shape, (2, *shape)):
        raise ValueError(f"reference must have shape {tuple(shape)} or {(2, *shape)}, found {tuple(reference.shape)}")
    image_reference, text_reference = reference if reference.dim() == 3 else (reference, reference)
    summed = F.mse_loss(raw_image_features, image_reference) + F.mse_loss(raw_text_features, text_reference)
    if reduction == "mean":
        return summed
    if reduction == "paper":
        return summed * (shape[1] / 2)
    raise ValueError(f"reduction must be `mean` or `paper`, found {reduction!r}")


def hycd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Hybrid contrastive distillation: the teacher's softmax blended with the true pairing, both directions.

    q̂ = α I + (1 − α) softmax(S/T) over rows, L = T² KL(q̂ ‖ softmax(s/T)), mean over rows, averaged over the rows
    of S and the rows of Sᵀ. At T = 1 the gradient is α·∇InfoNCE(s) + (1 − α)·∇KL(softmax S ‖ softmax s).
    Source: the paper's HyCD. The teacher's logits are detached.

    Args:
        student_logits: s [B, B], image to text.
        teacher_logits: S [B, B], image to text.
        alpha: Weight of the hard target, in [0, 1].
        temperature: T > 0, a divisor of both logits.

    Raises:
        ValueError: Not two equal square matrices, α outside [0, 1], T not positive.
    """
    _check_square(student_logits)
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have shape {tuple(student_logits.shape)}, found {tuple(teacher_logits.shape)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], found {alpha}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    teacher_logits = teacher_logits.detach()
    directions = ((student_logits, teacher_logits), (student_logits.T, teacher_logits.T))
    image_to_text, text_to_image = (_hybrid_kl(s / temperature, t / temperature, alpha) for s, t in directions)
    return temperature**2 * (image_to_text + text_to_image) / 2


def _hybrid_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, alpha: float) -> torch.Tensor:
    hybrid_probs = (1 - alpha) * teacher_logits.softmax(dim=-1)
    hybrid_probs.diagonal().add_(alpha)
    return F.kl_div(student_logits.log_softmax(dim=-1), hybrid_probs, reduction="batchmean")


def contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE, as CLIP is trained: cross-entropy of the diagonal over rows and over columns, averaged.

    Source: Radford et al. 2021 (arXiv 2103.00020).

    Args:
        logits: [B, B], image to text, already multiplied by the logit scale.

    Raises:
        ValueError: Not a square matrix.
    """
    _check_square(logits)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def caption_pair_loss(logits: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the diagonal over rows: each query against its document among those of all pairs.

    One direction, as LLM2CLIP tunes its language model (arXiv 2411.04997; checked against its released loss: 50 times
    the cosine, query to document only). A document that is the same text as a pair's own is no negative of it.

    Args:
        logits: [B, B], query to document, already multiplied by the scale.
        equal: bool [B, B], which documents are no negatives of which query; nothing on the diagonal.

    Raises:
        ValueError: Not a square matrix.
    """
    _check_square(logits)
    return F.cross_entropy(logits.masked_fill(equal, -torch.inf), torch.arange(len(logits), device=logits.device))


def alignment_loss(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the pairs, mean ‖f̂ − ĝ‖², twice the mean of 1 − f̂·ĝ.

    Source: Wang & Isola 2020 (arXiv 2005.10242).

    Args:
        image_features: [B, D], L2-normalised.
        text_features: [B, D], L2-normalised.

    Raises:
        ValueError: Shapes differ.
    """
    _check_pairs(image_features, text_features)
    return (image_features - text_features).square().sum(dim=-1).mean()


def mixup_contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    mix: torch.Tensor,
) -> torch.Tensor:
    """Geodesic multi-modal mixup: InfoNCE whose negatives are mixtures of each other pair on the sphere's arc.

    m_j = f̂_j sin(λθ_j)/sin θ_j + ĝ_j sin((1 − λ)θ_j)/sin θ_j, θ_j the angle between f̂_j and ĝ_j. Image i keeps its own
    text as the positive and meets m_j (j ≠ i) as negatives; the same with the roles exchanged.
    Source: Oh et al. 2023 (arXiv 2203.03897).

    Args:
        image_features: f̂ [B, D], L2-normalised.
        text_features: ĝ [B, D], L2-normalised.
        logit_scale: Scalar, exponentiated.
        mix: λ, scalar in [0, 1]: 1 gives the image features as mixtures, 0 the text features.

    Raises:
        ValueError: Shapes differ.
    """
    _check_pairs(image_features, text_features)
    mixed = geodesic_mixture(image_features, text_features, mix)
    positives = logit_scale * (image_features * text_features).sum(dim=-1)  # [B]
    targets = torch.arange(len(positives), device=positives.device)
    losses = []
    for features in (image_features, text_features):
        logits = logit_scale * features @ mixed.T
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        losses.append(F.cross_entropy(torch.where(own, positives[:, None], logits), targets))
    return (losses[0] + losses[1]) / 2


def geodesic_mixture(a: torch.Tensor, b: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Return the point at share `mix` of the great arc from `b` (0) to `a` (1): unit rows [B, D] in and out."""
    tiny = torch.finfo(a.dtype).eps
    cosine = (a * b).sum(dim=-1, keepdim=True).clamp(-1 + tiny, 1 - tiny)
    angle = cosine.acos()
    return (a * (mix * angle).sin() + b * ((1 - mix) * angle).sin()) / angle.sin()


def feature_kd_loss(raw_features: torch.Tensor, teacher_raw_features: torch.Tensor) -> torch.Tensor:
    """Mean squared error to the teacher's raw features, over all B·D entries.

    Args:
        raw_features: [B, D].
        teacher_raw_features: [B, D], detached here.

    Raises:
        ValueError: Shapes differ (a teacher of another width cannot teach features).
    """
    _check_pairs(raw_features, teacher_raw_features)
    return F.mse_loss(raw_features, teacher_raw_features.detach())


def logit_kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the similarity matrices; the transposed direction has the same value.

    Args:
        student_logits: [B, B].
        teacher_logits: [B, B], detached here.

    Raises:
        ValueError: Not two equal square matrices.
    """
    _check_square(student_logits)
    _check_pairs(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits.detach())


def _check_pairs(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(f"expected two tensors [B, D] of one shape, found {tuple(a.shape)} and {tuple(b.shape)}")


def _check_square(logits: torch.Tensor) -> None:
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"expected square logits [B, B], found {tuple(logits.shape)}")
