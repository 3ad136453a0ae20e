"""The norms of raw features before the first step: logged, and warned of where raw dot products are no good logits."""

from __future__ import annotations

import logging

import torch

from pipeline_lib.core.distributed import World
from pipeline_lib.model import Clip
from pipeline_lib.model.features import raw_norms_problem
from pipeline_lib.refine.epochs import read_batch
from pipeline_lib.refine.state import Setup
from pipeline_lib.refine.validation import embed_batch

log = logging.getLogger(__name__)


def measure_raw_norms(student: Clip, setup: Setup) -> dict[str, float]:
    """Return the mean norms of the raw features of the run's first batch, and warn where the recipe suffers from them.

    A recipe that compares raw dot products (`Recipe.uses_raw_logits`) suffers where their size is far from the logits
    that a model was trained with; see `raw_norms_problem`. Every process must call this; no random state is used.

    Returns:
        `raw_image_norm`, `raw_text_norm`, `teacher_raw_image_norm`, `teacher_raw_text_norm`.
    """
    data = read_batch(setup.part, setup.plan.batches(0)[0], seed=setup.plan.seed, epoch=0, world=setup.world)
    own = embed_batch(student, data.inputs, setup)
    teacher = setup.teacher_features(student, data)
    norms: dict[str, float] = {}
    problems = []
    for model, features, world in (("", own, setup.world), ("teacher_", teacher, World())):
        image, text = (_mean_norm(rows, len(data.rows), world) for rows in features[:2])
        norms |= {f"{model}raw_image_norm": image, f"{model}raw_text_norm": text}
        problems.append(raw_norms_problem(image, text, float(features.logit_scale)))
    if setup.recipe.uses_raw_logits and setup.world.is_main:
        for problem in dict.fromkeys(filter(None, problems)):  # one for both where the base teaches
            log.warning("recipes.%s: %s", setup.settings.recipe, problem)
    return norms


def _mean_norm(own: torch.Tensor, num_rows: int, world: World) -> float:
    return float(torch.cat(world.gather_rows(own.norm(dim=-1), num_rows)).mean())
