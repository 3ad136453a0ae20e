"""What is checked before the first step, after the last one, and before the result is published."""

from __future__ import annotations

import logging

import numpy as np
import psutil
import torch

from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.model import SCALARS, Clip
from pipeline_lib.model.adapter import Shape, num_weights
from pipeline_lib.model.embed import embed_images, embed_texts
from pipeline_lib.model.features import row_difference
from pipeline_lib.refine.epochs import Plan
from pipeline_lib.refine.optimiser import named_trainable

log = logging.getLogger(__name__)
STEP0_ROWS = 16  # at least: a fault of the whole part (model, captions, preprocessing) shows in each of them
MOST_STEP0_ROWS = 2048  # their pixels are in memory together
SAVED_ROWS = 8  # pairs that go through the saved model as well; on a small set more would cost as much as steps


def check_adapter_fits(shape: Shape, width: int, embed_dim: int, device: torch.device) -> None:
    """Refuse an adapter whose weights, gradients and AdamW's two means are more than the memory that is free.

    Raises:
        UserError: They are; says how much both is.
    """
    needed = 4 * 4 * num_weights(width, embed_dim, shape)
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"refine.adapter: {needed / 1e9:.1f} GB for its weights, gradients and optimiser, and {free / 1e9:.1f} GB "
            f"are free; lower depth ({shape.depth}) or expansion ({shape.expansion})"
        )


def check_plan(plan: Plan, num_processes: int) -> None:
    """Refuse a batch size that leaves no step, or a step with fewer pairs than processes.

    Raises:
        UserError: It does.
    """
    if plan.num_steps == 0:
        raise UserError(
            f"refine.batch_size: {plan.batch_size} is more than the {len(plan.rows)} training "
            "samples; lower it, or set refine.last_batch to keep"
        )
    if plan.smallest_batch < num_processes:
        raise UserError(
            f"refine.batch_size: {plan.batch_size} makes a batch of {plan.smallest_batch} pairs, too few "
            f"for {num_processes} processes; change it, take fewer processes, or set refine.last_batch to drop"
        )


def check_base_against_cache(
    student: Clip, part: CachedPart, cache: CacheTeacherSettings, tolerance: float
) -> dict[str, float]:
    """Check step 0 where the base teaches itself; the tolerance is no finer than the cache.

    Returns:
        `step0_difference`, see `check_step_zero`; nothing where there is nothing to compare.

    Raises:
        UserError: See `check_step_zero`.
    """
    if cache.teacher != "base" or cache.mode != "cached":
        return {}
    rough = {"float16": 2e-3}.get(cache.dtype, 0.0), {"tf32": 2e-3, "bf16": 2e-2}.get(cache.precision, 0.0)
    difference = check_step_zero(student, part, max(tolerance, *rough), cache.precision)
    log.info("step 0: student and cache differ by %.1e of a feature's norm", difference)
    return {"step0_difference": difference}


def check_step_zero(student: Clip, part: CachedPart, tolerance: float, precision: str = "fp32") -> float:
    """Compare the student's features before the first step with the cache, for both come from the same weights.

    A few pairs, spread over the part, about one from each shard: a wrong unit of the cache shows in any row of it.
    Those of texts do not where a language model reads them, and are not compared. `precision` is the cache's, so that
    both sides compute alike.

    Returns:
        Largest relative difference of a feature row.

    Raises:
        UserError: It is larger than `tolerance`: wrong cache, captions, preprocessing or order.
    """
    count = min(len(part.valid_rows), MOST_STEP0_ROWS, max(STEP0_ROWS, len(part.units)))
    rows = part.valid_rows[np.linspace(0, len(part.valid_rows) - 1, count).astype(int)]
    captions = [int(part.num_captions[row]) - 1 for row in rows]
    stored = part.read_features(rows, captions)
    if stored is None:
        return 0.0
    inputs = part.read_inputs(rows, captions, pixels=True)
    with runtime.arithmetic(precision, student.device):
        fresh = [embed_images(student, inputs.images, STEP0_ROWS)]
        if not inputs.texts.is_floating_point():
            fresh.append(embed_texts(student, inputs.texts, STEP0_ROWS))
    worst = max(row_difference(*pair) for pair in zip(fresh, stored, strict=False))
    if not worst <= tolerance:
        raise UserError(
            f"refine: before the first step the student's features differ from the cache by {worst:.2e} of their norm, "
            f"more than refine.step0_tolerance {tolerance:.0e}; run `dvc repro -f cache_teacher`"
        )
    return worst


def check_gradients(student: Clip, recipe: str) -> None:
    """Refuse, behind the gradient of the first step, to train weights that the loss does not depend on.

    A gradient of None says so; one that is 0 does not: that of a student that still equals its teacher is.

    Raises:
        UserError: A weight that `refine` says is trained has no gradient.
    """
    idle = [name for name, parameter in named_trainable(student) if parameter.grad is None]
    if idle:
        keys = {_key_of(name): None for name in idle}
        names = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        raise UserError(
            f"refine: these weights are said to be trained, but the loss of recipe `{recipe}` does not depend on them: "
            f"{names}; set {' and '.join(keys)}, or take a recipe that uses them"
        )


def _key_of(name: str) -> str:
    """Return the setting by which the weight `name` is not trained."""
    if name in SCALARS:
        return "refine.train_logit_scale to false"
    return f"refine.lock_{'image' if name.startswith('visual.') else 'text'} to true"


def check_weights(student: Clip) -> None:
    """Refuse weights that exploded on the last step, from which no loss was computed.

    Raises:
        UserError: A trained weight is not finite.
    """
    broken = [name for name, parameter in named_trainable(student) if not parameter.isfinite().all()]
    if broken:
        raise UserError(
            f"refine: the weights are not finite after the last step ({len(broken)} tensors, first {broken[0]}); "
            "lower refine.learning_rate"
        )


def warn_if_still(displacement: float) -> None:
    """Warn where the weights moved by less than a thousandth of their norm."""
    if displacement < 1e-3:
        log.warning(
            "the weights moved by %.1e of their norm only: learning rate x steps is too small to change the model; "
            "raise refine.learning_rate or refine.epochs for a set of this size",
            displacement,
        )


def check_saved(student: Clip, saved: Clip, part: CachedPart) -> None:
    """Check that the saved folder, loaded back, gives bitwise the features of the model in memory, of a few pairs.

    Raises:
        UserError: It does not, or they are not finite.
    """
    rows = part.valid_rows[:SAVED_ROWS]
    inputs = part.read_inputs(rows, [0] * len(rows), pixels=True)
    student.module.eval()
    for embed, x in ((embed_images, inputs.images), (embed_texts, inputs.texts)):
        features = embed(student, x, len(rows))
        if not features.isfinite().all():
            raise UserError("refine: the refined model's features are not finite; lower refine.learning_rate")
        if not torch.equal(features, embed(saved, x, len(rows))):
            raise UserError(f"{saved.directory}: the saved model does not give the features of the refined one")
