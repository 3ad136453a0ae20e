"""One optimiser step: gradient of the recipe's loss, clipping, AdamW, the row of the history.

Losses are not defined here (`recipes`), gradients neither (`gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.refine.checks import check_gradients
from pipeline_lib.refine.epochs import StepData
from pipeline_lib.refine.gradients import backward
from pipeline_lib.refine.optimiser import clamp_logit_scale, learning_rate, named_trainable
from pipeline_lib.refine.state import Setup, State


def take_step(state: State, data: StepData, setup: Setup) -> dict[str, Any]:
    """Take one optimiser step on a batch and return its row of the history; beside `state` nothing changes.

    Returns:
        `step`, `epoch`, `loss`, the recipe's terms, `learning_rate` and, with `refine.grad_clip`, `gradient_norm`.

    Raises:
        UserError: The loss is not finite, or does not depend on a weight that is said to be trained.
    """
    settings, step = setup.settings, state.step
    rate = learning_rate(settings, step, setup.plan.num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(settings, step, setup.plan.num_steps, group.get("highest"))
    if settings.stochastic_layers:
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1_009 + setup.world.rank)
    state.optimizer.zero_grad(set_to_none=True)
    with _compiled_or_said():
        terms = backward(
            state.encoders,
            setup.recipe,
            setup.cut_texts(state.student, data.inputs),
            setup.teacher_features(state.student, data),
            setup.draws(data.rows, step),
            micro_batch=settings.micro_batch,
            world=setup.world,
        )
    values = {name: float(term) for name, term in terms.items()}
    loss = math.fsum(value for name, value in values.items() if name.endswith("_loss"))
    if not math.isfinite(loss):
        raise _not_finite(values, data.rows, step, setup)
    if step == 0:
        check_gradients(state.student, settings.recipe)
    row = {"step": step, "epoch": step // setup.plan.steps_per_epoch, "loss": loss, **values, "learning_rate": rate}
    if settings.grad_clip is not None:
        trained = [parameter for _, parameter in named_trainable(state.student)]
        row["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip))
    state.optimizer.step()
    clamp_logit_scale(state.student, state.initial_logit_scale)
    state.step += 1
    return row


@contextmanager
def _compiled_or_said() -> Iterator[None]:
    """Say in one line that towers cannot be compiled."""
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        raise UserError(
            f"refine.compile: the towers cannot be compiled ({first_lines(error, 1)}); install what is missing, or "
            "write false"
        ) from error


def _not_finite(values: Mapping[str, float], rows: np.ndarray, step: int, setup: Setup) -> UserError:
    keys = ", ".join(setup.part.entry(row)[1].key for row in rows[:8])
    terms = ", ".join(f"{name} {value}" for name, value in values.items())
    return UserError(
        f"refine: the loss is not finite at step {step} ({terms}; batch: {keys}, …); "
        "lower refine.learning_rate, or check these samples"
    )
