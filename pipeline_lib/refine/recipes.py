"""Which losses, with which weights: one short function per recipe, reading like its equation.

A recipe takes the student's and the teacher's features of B pairs and this step's random draws, and returns named
terms. The loop sums the terms whose name ends in `_loss` and logs every term; a term without the suffix is logged only.
Terms come with their weight applied; a weight of 0 leaves the term out (0 x NaN is NaN).

The keyword-only arguments are the schema of the recipe's block in params.yaml: `make_recipe` refuses unknown, missing
and mistyped keys and numbers out of range. A new recipe is one function under `@recipe` and one block in params.yaml.
The first line of its docstring is its equation, which `compare` prints; there f, g are the student's raw image and text
features of the batch, F, G the teacher's, hats mark L2-normalised ones, s = f gᵀ and S = F Gᵀ.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch

from pipeline_lib import losses
from pipeline_lib.core import schema
from pipeline_lib.core.errors import Mistakes, UserError
from pipeline_lib.model.features import Features
from pipeline_lib.refine.sampling import Draws

Terms = dict[str, torch.Tensor]
Function = Callable[..., Terms]
T = TypeVar("T", bound=Function)
Logits = Literal["raw", "scaled_cosine"]

RECIPES: dict[str, Function] = {}
"""The functions under `@recipe` by name, in the order in which they stand here."""


@overload
def recipe(function: T) -> T: ...
@overload
def recipe(*, raw_logits: bool) -> Callable[[T], T]: ...
def recipe(function: T | None = None, *, raw_logits: bool = False) -> T | Callable[[T], T]:
    """Register a function in `RECIPES` under its own name: write `@recipe` or `@recipe(raw_logits=True)` above it.

    Args:
        function: Takes the features of student and teacher and the draws; its keyword-only arguments are its block.
        raw_logits: Its loss compares raw dot products, so the run warns where the norms of the features make them
            unlike the logits that the models were trained with. Where there is a keyword `logits`, that decides.
    """

    def register(function: T) -> T:
        function.raw_logits = raw_logits  # type: ignore[attr-defined]
        RECIPES[function.__name__] = function
        return function

    return register(function) if function else register


@dataclass(frozen=True)
class Recipe:
    """A function of `RECIPES` with the parameters of its block."""

    function: Function
    parameters: Mapping[str, Any]

    def __call__(self, student: Features, teacher: Features, draws: Draws) -> Terms:
        """Evaluate the terms on B pairs."""
        return self.function(student, teacher, draws, **self.parameters)

    @property
    def uses_raw_logits(self) -> bool:
        """Whether raw dot products are compared: the parameter `logits` says so or, without one, the declaration."""
        if "logits" in self.parameters:
            return bool(self.parameters["logits"] == "raw")
        return bool(self.function.raw_logits)  # type: ignore[attr-defined]


@schema.block
class Prior:
    """The distribution of RaFA's reference vectors z."""

    kind: Literal["normal", "uniform", "teacher"]
    """Shape of the distribution; teacher: normal, with the mean and deviation of each of the teacher's dimensions."""

    mean: float
    """Number added to the mean of the distribution."""

    std: schema.NotNegative
    """Factor on the standard deviation of the distribution; 0: no noise, z is the mean itself."""

    shared: bool
    """True: image and text of a pair share one z, as in the paper; false: each has its own."""

    decay: Literal["none", "linear"]
    """Course of the RaFA term's weight over the run; linear: from 1 down to 0."""


def similarity(features: Features, logits: Logits) -> torch.Tensor:
    """Return image-to-text logits [B, B]: raw dot products (the paper), or cosines times the model's logit scale."""
    if logits == "raw":
        return features.raw_image_features @ features.raw_text_features.T
    return features.logit_scale * features.image_features @ features.text_features.T


def draw_reference(prior: Prior, student: Features, draws: Draws) -> torch.Tensor:
    """Draw RaFA's z [B, D], or [2, B, D] where the modalities do not share it, in the student's dtype and device."""
    features = student.raw_image_features
    copies, width = (1 if prior.shared else 2), features.shape[1]
    mean = torch.zeros(width)
    std = torch.full((width,), prior.std)
    if prior.kind == "teacher":
        if draws.teacher_mean is None or draws.teacher_std is None:
            raise UserError("prior.kind: `teacher` needs the teacher's statistics; write cache_teacher.mode: cached")
        if len(draws.teacher_mean) != width:
            raise UserError("prior.kind: `teacher` needs the statistics of a teacher of the student's feature width")
        mean, std = draws.teacher_mean.cpu(), draws.teacher_std.cpu() * prior.std
    if prior.std == 0:
        noise = torch.zeros(copies, len(features), width)
    else:
        noise = draws.uniform(width, copies=copies) if prior.kind == "uniform" else draws.normal(width, copies=copies)
    reference = (mean + prior.mean + std * noise).to(features)
    return reference[0] if prior.shared else reference


@recipe
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


@recipe
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


@recipe
def rafa(student: Features, teacher: Features, draws: Draws, *, reduction: losses.Reduction, prior: Prior) -> Terms:
    """L = RaFA(f, g, z)."""
    reference = draw_reference(prior, student, draws)
    weight = 1 - draws.progress if prior.decay == "linear" else 1.0
    term = losses.rafa_loss(student.raw_image_features, student.raw_text_features, reference, reduction=reduction)
    return {"rafa_loss": weight * term}


@recipe
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


@recipe
def self_kd(
    student: Features, teacher: Features, draws: Draws, *, temperature: schema.Positive, logits: Logits
) -> Terms:
    """L = T² KL(softmax(S/T) ‖ softmax(s/T)): HyCD with α = 0."""
    terms = hycd(student, teacher, draws, alpha=0.0, temperature=temperature, logits=logits)
    return {"self_kd_loss": terms["hycd_loss"]}


@recipe
def contrastive(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = InfoNCE(logit_scale · f̂ ĝᵀ): plain fine-tuning, the fair baseline."""
    return {"contrastive_loss": losses.contrastive_loss(similarity(student, "scaled_cosine"))}


@recipe(raw_logits=True)
def contrastive_raw(student: Features, teacher: Features, draws: Draws, *, scale: schema.Positive) -> Terms:
    """L = InfoNCE(scale · f gᵀ) on raw features: what the published code's contrastive baseline computes."""
    return {"contrastive_loss": losses.contrastive_loss(scale * similarity(student, "raw"))}


@recipe
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


@recipe
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


@recipe
def feature_kd(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = mse(f, F) + mse(g, G)."""
    image = losses.feature_kd_loss(student.raw_image_features, teacher.raw_image_features)
    text = losses.feature_kd_loss(student.raw_text_features, teacher.raw_text_features)
    return {"feature_kd_loss": image + text}


@recipe(raw_logits=True)
def logit_kd(student: Features, teacher: Features, draws: Draws) -> Terms:
    """L = mse(f gᵀ, F Gᵀ)."""
    return {"logit_kd_loss": losses.logit_kd_loss(similarity(student, "raw"), similarity(teacher, "raw"))}


@recipe
def llm2clip(
    student: Features,
    teacher: Features,
    draws: Draws,
    *,
    image_anchor: schema.NotNegative,
    text_anchor: schema.NotNegative,
) -> Terms:
    """L = InfoNCE + λ₁ mean(1 − f̂·F̂) + λ₂ mean(1 − ĝ·Ĝ): LLM2CLIP's loss, with anchors in the old space."""
    terms = contrastive(student, teacher, draws)
    if image_anchor:
        distance = losses.alignment_loss(student.image_features, teacher.image_features)
        terms["image_anchor_loss"] = image_anchor * distance / 2
    if text_anchor:
        distance = losses.alignment_loss(student.text_features, teacher.text_features)
        terms["text_anchor_loss"] = text_anchor * distance / 2
    return terms


def make_recipe(name: str, blocks: Mapping[str, Any]) -> Recipe:
    """Look up the recipe `name` and give it the parameters of its block in `recipes:`, checked.

    Args:
        name: A key of `RECIPES`.
        blocks: The section `recipes` as plain values.

    Raises:
        UserError: Unknown recipe, missing block, a key that does not fit the function's signature, or no loss left.
    """
    if name not in RECIPES:
        raise UserError(f"params.yaml: refine.recipe: unknown recipe `{name}`{schema.did_you_mean(name, RECIPES)}")
    path = f"params.yaml: recipes.{name}"
    if not isinstance(blocks.get(name), dict):
        raise UserError(f"{path}: missing; add a block with the recipe's parameters ({{}} if it has none)")
    function = RECIPES[name]
    hints = typing.get_type_hints(function, include_extras=True)
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    mistakes, values = Mistakes(), {}
    unknown = [key for key in blocks[name] if key not in wanted]
    mistakes.sentences += [f"{path}.{key}: unknown key; known: {', '.join(wanted) or 'none'}" for key in unknown]
    mistakes.sentences += [f"{path}.{key}: missing; add it" for key in wanted if key not in blocks[name]]
    for key in [key for key in wanted if key in blocks[name]]:
        with mistakes:
            values[key] = schema.convert(hints[key], blocks[name][key], f"{path}.{key}")
    mistakes.raise_all()
    made = Recipe(function, values)
    try_out(made, path)
    return made


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
    """Sum the terms whose name ends in `_loss`.

    Raises:
        ValueError: There is none.
    """
    summed = [value for name, value in terms.items() if name.endswith("_loss")]
    if not summed:
        raise ValueError(f"no term ends in `_loss`: {sorted(terms)}")
    return torch.stack(summed).sum()


def _weighted(weight: float, terms: Terms) -> Terms:
    return {name: weight * value for name, value in terms.items()}
