"""Which losses, with which weights: one short function per recipe, reading like its equation.

A recipe takes the student's and the teacher's features of B pairs and this step's random draws, and returns named
terms. The loop sums the terms whose name ends in `_loss` and logs every term; a term without the suffix is logged only.
Terms come with their weight applied; a weight of 0 leaves the term out (0 x NaN is NaN).

The keyword-only arguments are the schema of the recipe's block in params.yaml: `build` refuses unknown, missing and
mistyped keys and numbers out of range. A new recipe is one function, one entry in `RECIPES` and one block in
params.yaml.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, Literal

import torch

from pipeline_lib import losses
from pipeline_lib.core import schema
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.features import Features
from pipeline_lib.refine.sampling import Draws

Terms = dict[str, torch.Tensor]
Recipe = Callable[[Features, Features, Draws], Terms]
Logits = Literal["raw", "scaled_cosine"]


@schema.block
class Prior:
    """The law of RaFA's reference vectors."""

    kind: Literal["normal", "uniform", "teacher"]  # teacher: per-dimension mean and deviation of the teacher's features
    mean: float  # added to the prior's mean
    std: schema.NotNegative  # factor on its deviation; 0: no noise, the mean itself
    shared: bool  # one vector per pair (the paper) or one per modality
    decay: Literal["none", "linear"]  # weight of the RaFA term over the run


def similarity(features: Features, logits: Logits) -> torch.Tensor:
    """[B, B] image-to-text logits: raw dot products (the paper) or cosines times the model's own logit scale."""
    if logits == "raw":
        return features.raw_image_features @ features.raw_text_features.T
    return features.logit_scale * features.image_features @ features.text_features.T


def uses_raw_logits(recipe: Recipe) -> bool:
    """Whether a recipe of `build` was told to compare raw dot products."""
    return isinstance(recipe, functools.partial) and recipe.keywords.get("logits") == "raw"


def with_raw_norms(recipe: Recipe) -> Recipe:
    """`recipe` with the mean norms of the student's and the teacher's raw features among its terms, to be logged."""

    def measured(student: Features, teacher: Features, draws: Draws) -> Terms:
        norms = {
            f"{model}raw_{modality}_norm": features[row].norm(dim=-1).mean()
            for model, features in (("", student), ("teacher_", teacher))
            for row, modality in enumerate(("image", "text"))
        }
        return recipe(student, teacher, draws) | norms

    return measured


def draw_reference(prior: Prior, student: Features, draws: Draws) -> torch.Tensor:
    """RaFA's z [B, D], or [2, B, D] where the modalities do not share it, in the student's dtype and device."""
    features = student.raw_image_features
    copies, width = (1 if prior.shared else 2), features.shape[1]
    mean = torch.zeros(width)
    std = torch.full((width,), prior.std)
    if prior.kind == "teacher":
        if draws.teacher_mean is None or draws.teacher_std is None or len(draws.teacher_mean) != width:
            raise UserError("prior.kind: `teacher` needs the statistics of a teacher of the student's feature width")
        mean, std = draws.teacher_mean.cpu(), draws.teacher_std.cpu() * prior.std
    if prior.std == 0:
        noise = torch.zeros(copies, len(features), width)
    else:
        noise = draws.uniform(width, copies=copies) if prior.kind == "uniform" else draws.normal(width, copies=copies)
    reference = (mean + prior.mean + std * noise).to(features)
    return reference[0] if prior.shared else reference


def rafa(student: Features, teacher: Features, draws: Draws, *, reduction: losses.Reduction, prior: Prior) -> Terms:
    """L = RaFA(f, g, z)."""
    reference = draw_reference(prior, student, draws)
    weight = 1 - draws.progress if prior.decay == "linear" else 1.0
    term = losses.rafa_loss(student.raw_image_features, student.raw_text_features, reference, reduction=reduction)
    return {"rafa_loss": weight * term}


def hycd(
    student: Features,
    teacher: Features,
    draws: Draws,
    *,
    alpha: schema.Share,
    temperature: schema.Positive,
    logits: Logits,
) -> Terms:
    """L = HyCD(f gᵀ, F Gᵀ)."""
    student_logits, teacher_logits = similarity(student, logits), similarity(teacher, logits)
    return {"hycd_loss": losses.hycd_loss(student_logits, teacher_logits, alpha=alpha, temperature=temperature)}


def clip_refine(
    student: Features,
    teacher: Features,
    draws: Draws,
    *,
    rafa_weight: schema.NotNegative,
    hycd_weight: schema.NotNegative,
    alpha: schema.Share,
    temperature: schema.Positive,
    logits: Logits,
    reduction: losses.Reduction,
    prior: Prior,
) -> Terms:
    """L = λ₁ RaFA + λ₂ HyCD; the paper's λ are equal."""
    terms: Terms = {}
    if rafa_weight:
        terms |= _weighted(rafa_weight, rafa(student, teacher, draws, reduction=reduction, prior=prior))
    if hycd_weight:
        kd = hycd(student, teacher, draws, alpha=alpha, temperature=temperature, logits=logits)
        terms |= _weighted(hycd_weight, kd)
    return terms


def clip_refine_no_noise(
    student: Features,
    teacher: Features,
    draws: Draws,
    *,
    rafa_weight: schema.NotNegative,
    hycd_weight: schema.NotNegative,
    alpha: schema.Share,
    temperature: schema.Positive,
    logits: Logits,
    reduction: losses.Reduction,
) -> Terms:
    """CLIP-Refine with σ = 0: RaFA becomes plain L2 shrinkage to 0."""
    return clip_refine(
        student,
        teacher,
        draws,
        rafa_weight=rafa_weight,
        hycd_weight=hycd_weight,
        alpha=alpha,
        temperature=temperature,
        logits=logits,
        reduction=reduction,
        prior=Prior(kind="normal", mean=0.0, std=0.0, shared=True, decay="none"),
    )


def self_kd(
    student: Features, teacher: Features, draws: Draws, *, temperature: schema.Positive, logits: Logits
) -> Terms:
    """L = T² KL(softmax(S/T) ‖ softmax(s/T)): HyCD with α = 0."""
    terms = hycd(student, teacher, draws, alpha=0.0, temperature=temperature, logits=logits)
    return {"self_kd_loss": terms["hycd_loss"]}


def contrastive(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = InfoNCE(logit_scale · f̂ ĝᵀ): plain fine-tuning, the fair baseline."""
    return {"contrastive_loss": losses.contrastive_loss(similarity(student, "scaled_cosine"))}


def contrastive_raw(student: Features, teacher: Features, draws: Draws, *, scale: schema.Positive) -> Terms:
    """L = InfoNCE(scale · f gᵀ) on raw features: what the published code's contrastive baseline computes."""
    return {"contrastive_loss": losses.contrastive_loss(scale * similarity(student, "raw"))}


def hycd_align(
    student: Features,
    teacher: Features,
    draws: Draws,
    *,
    alpha: schema.Share,
    temperature: schema.Positive,
    logits: Logits,
    align_weight: schema.NotNegative,
) -> Terms:
    """L = HyCD + λ mean ‖f̂ − ĝ‖²: closing the gap by force."""
    terms = hycd(student, teacher, draws, alpha=alpha, temperature=temperature, logits=logits)
    if align_weight:
        terms["align_loss"] = align_weight * losses.alignment_loss(student.image_features, student.text_features)
    return terms


def m2_mix(
    student: Features, teacher: Features, draws: Draws, *, beta: schema.Positive, mix_weight: schema.NotNegative
) -> Terms:
    """L = InfoNCE + λ InfoNCE with geodesic mixtures as negatives, mixing share ~ Beta(β, β) per step."""
    terms = contrastive(student, teacher, draws)
    if mix_weight:
        mix = torch.tensor(draws.beta(beta)).to(student.raw_image_features)
        mixed = losses.mixup_contrastive_loss(student.image_features, student.text_features, student.logit_scale, mix)
        terms["m2_mix_loss"] = mix_weight * mixed
    return terms


def feature_kd(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = mse(f, F) + mse(g, G)."""
    image = losses.feature_kd_loss(student.raw_image_features, teacher.raw_image_features)
    text = losses.feature_kd_loss(student.raw_text_features, teacher.raw_text_features)
    return {"feature_kd_loss": image + text}


def logit_kd(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = mse(f gᵀ, F Gᵀ)."""
    return {"logit_kd_loss": losses.logit_kd_loss(similarity(student, "raw"), similarity(teacher, "raw"))}


RECIPES: dict[str, Callable[..., Terms]] = {
    function.__name__: function
    for function in (
        clip_refine,
        clip_refine_no_noise,
        rafa,
        hycd,
        self_kd,
        contrastive,
        contrastive_raw,
        hycd_align,
        m2_mix,
        feature_kd,
        logit_kd,
    )
}


def build(name: str, blocks: dict[str, Any]) -> Recipe:
    """The recipe `name` with the parameters of its block in `recipes:`.

    Args:
        name: A key of `RECIPES`.
        blocks: The section `recipes` as plain values.

    Raises:
        UserError: Unknown recipe, missing block, a key that does not fit the function's signature, or no loss left.
    """
    if name not in RECIPES:
        raise UserError(f"params.yaml: refine.recipe: unknown recipe `{name}`; known: {', '.join(RECIPES)}")
    path = f"params.yaml: recipes.{name}"
    if not isinstance(blocks.get(name), dict):
        raise UserError(f"{path}: missing; add a block with the recipe's parameters ({{}} if it has none)")
    function = RECIPES[name]
    hints = typing.get_type_hints(function, include_extras=True)
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in blocks[name]:
        if key not in wanted:
            raise UserError(f"{path}.{key}: unknown key; known: {', '.join(wanted) or 'none'}")
    for key in wanted:
        if key not in blocks[name]:
            raise UserError(f"{path}.{key}: missing; add it")
    values = {key: schema.convert(hints[key], blocks[name][key], f"{path}.{key}") for key in wanted}
    recipe = functools.partial(function, **values)
    try_out(recipe, path)
    return recipe


def try_out(recipe: Recipe, path: str, student_width: int = 4, teacher_width: int = 4) -> None:
    """Run a recipe on two made-up pairs, so that what it refuses is refused before any model runs.

    Raises:
        UserError: It refuses its parameters or these feature widths, or gives no loss.
    """
    student, teacher = (
        Features(torch.eye(2, width), torch.eye(2, width), torch.tensor(1.0))
        for width in (student_width, teacher_width)
    )
    statistics = {"teacher_mean": torch.zeros(teacher_width), "teacher_std": torch.ones(teacher_width)}
    draws = Draws(seed=0, epoch=0, step=0, progress=0.0, key_digests=[bytes(16), bytes(16)], **statistics)
    try:
        terms = recipe(student, teacher, draws)
    except UserError as error:  # names the key itself
        raise UserError(f"{path}.{error}") from error
    except ValueError as error:
        remedy = "; take a recipe that compares logits, or a teacher of the base's width"
        raise UserError(f"{path}: {error}{remedy if student_width != teacher_width else ''}") from error
    if not any(name.endswith("_loss") for name in terms):
        raise UserError(f"{path}: every weight is 0, so there is no loss; raise one of them")


def total_loss(terms: Terms) -> torch.Tensor:
    """The sum of the terms whose name ends in `_loss`.

    Raises:
        ValueError: There is none.
    """
    summed = [value for name, value in terms.items() if name.endswith("_loss")]
    if not summed:
        raise ValueError(f"no term ends in `_loss`: {sorted(terms)}")
    return torch.stack(summed).sum()


def _weighted(weight: float, terms: Terms) -> Terms:
    return {name: weight * value for name, value in terms.items()}
