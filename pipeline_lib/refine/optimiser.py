"""What is trained, at which learning rate, by which optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline_lib import model
from pipeline_lib.core.errors import UserError
from pipeline_lib.model import Clip
from pipeline_lib.refine.settings import RefineSettings

LARGEST_LOGIT_SCALE = 100.0


def select_trainable(student: Clip, settings: RefineSettings) -> None:
    """Set `requires_grad` by `trainable`, `lock_*` and `train_logit_scale`, and the mode of every layer.

    Raises:
        UserError: Nothing is left to train, or a tower cannot be locked or checkpointed as asked.
    """
    module = student.module.requires_grad_(True)
    _set_mode(student, settings.stochastic_layers)
    if settings.lock_image:
        model.lock_image(student, settings.lock_image_unlocked_groups)
    if settings.lock_text:
        model.lock_text(student, settings.lock_text_unlocked_layers)
    projections = set(model.projection_names(student))
    for name, parameter in module.named_parameters():
        if settings.trainable == "projections" and name not in projections:
            parameter.requires_grad_(False)
        if name in model.SCALARS:
            parameter.requires_grad_(settings.train_logit_scale)
        if name.startswith("text_decoder."):  # CoCa's captioner, which no feature passes through
            parameter.requires_grad_(False)
    if settings.grad_checkpointing:
        model.checkpoint_activations(student)
    if not named_trainable(student):
        raise UserError("refine: every weight is locked; unlock something (trainable, lock_image, lock_text)")


def named_trainable(student: Clip) -> list[tuple[str, torch.nn.Parameter]]:
    """List the weights that are trained, in the model's order, with their names."""
    return [(name, parameter) for name, parameter in student.module.named_parameters() if parameter.requires_grad]


def _set_mode(student: Clip, stochastic_layers: bool) -> None:
    """Eval mode: dropout and drop-path off, batch-norm statistics fixed; the latter stay fixed in any case."""
    student.module.train(stochastic_layers)
    for layer in student.module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eval()


def learning_rate(settings: RefineSettings, step: int, num_steps: int, highest: float | None = None) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or half a cosine to 0.

    `highest` stands in for `refine.learning_rate`.
    """
    highest = settings.learning_rate if highest is None else highest
    if step < settings.warmup_steps:
        return highest * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return highest
    share = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return highest * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(student: Clip, settings: RefineSettings) -> torch.optim.AdamW:
    """Make AdamW over the trainable weights, fused where it exists.

    One weight decay for all of the towers, as in the published code; none for the logit scale, which has no reason to
    shrink. An adapter, and with `layer_decay` each layer of the image tower, is a group with its own rate, `highest`.
    """
    trained = named_trainable(student)
    scalars = [p for name, p in trained if name in model.SCALARS]
    adapter = [p for name, p in trained if name.startswith(model.ADAPTER)]
    towers = [p for name, p in trained if name not in model.SCALARS and not name.startswith(model.ADAPTER)]
    groups: list[dict[str, Any]] = [{"params": towers}] if towers else []
    if settings.layer_decay is not None:
        groups = _by_layer(student, dict(trained), towers, settings.learning_rate, settings.layer_decay)
    if settings.adapter:
        groups.append({"params": adapter, "highest": settings.adapter.learning_rate})
    return torch.optim.AdamW(
        groups + ([{"params": scalars, "weight_decay": 0.0}] if scalars else []),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=student.device.type in ("cpu", "cuda"),
    )


def _by_layer(
    student: Clip,
    trained: Mapping[str, torch.nn.Parameter],
    towers: Sequence[torch.nn.Parameter],
    rate: float,
    decay: float,
) -> list[dict[str, Any]]:
    """Make a group of each layer of the image tower, the lower the slower, and one of the text tower."""
    layers = [[trained[name] for name in names if name in trained] for names in model.image_layers(student)]
    rates = [rate * decay ** (len(layers) - 1 - at) for at in range(len(layers))]
    there = {id(parameter) for layer in layers for parameter in layer}
    rest = [parameter for parameter in towers if id(parameter) not in there]
    groups = [{"params": layer, "highest": highest} for layer, highest in zip(layers, rates, strict=True) if layer]
    return [*groups, *([{"params": rest}] if rest else [])]


def clamp_logit_scale(student: Clip, initial: float) -> None:
    """Keep a trained logit scale between 1 and 100 after a step, as CLIP and open_clip train it.

    Args:
        student: Whose scale it is.
        initial: The parameter (a logarithm) before the first step; where it was above, it is the bound.
    """
    if student.module.logit_scale.requires_grad:
        with torch.no_grad():
            student.module.logit_scale.clamp_(0, max(math.log(LARGEST_LOGIT_SCALE), initial))
