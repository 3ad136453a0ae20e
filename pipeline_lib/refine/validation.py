"""The recipe's loss on pairs that the run does not train on, and the batch embedded without training on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.core.distributed import World
from pipeline_lib.model import Clip
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine.epochs import StepData
from pipeline_lib.refine.gradients import Encoders
from pipeline_lib.refine.recipes import total_loss
from pipeline_lib.refine.state import Setup

log = logging.getLogger(__name__)


def measure_val_loss(
    moment: str, student: Clip, part: CachedPart | None, setup: Setup, *, is_teacher: bool = False
) -> dict[str, float]:
    """Return `val_loss_<moment>`, the recipe's loss on part `val` with the student as it is.

    It is the mean over consecutive batches, with first captions, one fixed draw and no dropout, so that two moments of
    a run compare. Processes share the batches.

    Args:
        moment: `before` the first step or `after` the last.
        student: It is left as it was, and so is every global random state.
        part: Part `val`; without one, or without a valid row in it, nothing is returned.
        setup: Of the run.
        is_teacher: Whether the student has the weights of the teacher, whose features are then its own.
    """
    if part is None or not len(part.valid_rows):
        return {}
    rows = part.valid_rows
    size = min(setup.settings.batch_size, len(rows))
    batches = rows[: len(rows) // size * size].reshape(-1, size)
    alone = replace(setup, part=part, world=World())
    own = [_batch_loss(student, batch, alone, is_teacher) for batch in batches[setup.world.own_rows(len(batches))]]
    losses = setup.world.gather_rows(torch.tensor(own, device=student.device), len(batches))
    loss = float(torch.cat(losses).mean())
    if setup.world.is_main:
        log.info("%s: %s on %d batches of part val: %.6g", moment, setup.settings.recipe, len(batches), loss)
    return {f"val_loss_{moment}": loss}


@torch.no_grad()
def _batch_loss(student: Clip, rows: np.ndarray, setup: Setup, is_teacher: bool) -> float:
    captions = [0] * len(rows)
    data = StepData(rows, setup.part.read_inputs(rows, captions), setup.part.read_features(rows, captions))
    teacher = setup.teacher_features(student, data)
    features = teacher if is_teacher else embed_batch(student, data.inputs, setup)
    return float(total_loss(setup.recipe(features, teacher, setup.draws(rows, 0))))


@torch.no_grad()
def embed_batch(student: Clip, inputs: Inputs, setup: Setup) -> Features:
    """Embed a batch as a step does, but without dropout and by plain towers even where compiled ones train."""
    settings = setup.settings
    encoders = Encoders(student=student, precision=settings.precision, text_groups=settings.text_groups)
    size = settings.micro_batch or len(inputs.images)
    chunks = [x.split(size) for x in setup.cut_texts(student, inputs)]
    with _eval_mode(student.module):
        embedded = [encoders(Inputs(*chunk)) for chunk in zip(*chunks, strict=True)]
    image, text = (torch.cat(rows) for rows in zip(*embedded, strict=True))
    return Features(image, text, student.logit_scale)


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
