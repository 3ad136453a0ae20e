"""What a run carries from step to step (`State`), and what stays the same over all of them (`Setup`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch

from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core.distributed import World
from pipeline_lib.model import SCALARS, WEIGHTS, Clip
from pipeline_lib.model.embed import cut_length
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine.epochs import Plan, StepData
from pipeline_lib.refine.gradients import Encoders
from pipeline_lib.refine.optimiser import make_optimizer, named_trainable, select_trainable
from pipeline_lib.refine.recipes import Recipe
from pipeline_lib.refine.sampling import Draws
from pipeline_lib.refine.settings import RefineSettings


@dataclass(kw_only=True)
class State:
    """What a step changes: the student's weights, the optimiser, the number of steps taken."""

    student: Clip
    encoders: Encoders  # of `student`, as it is trained
    optimizer: torch.optim.AdamW
    initial_logit_scale: float  # the parameter, a logarithm
    sets_scale: bool  # not the base's
    step: int = 0

    @classmethod
    def start(cls, student: Clip, settings: RefineSettings) -> State:
        """Select what of `student` is trained, and make the optimiser.

        Raises:
            UserError: See `select_trainable`.
        """
        select_trainable(student, settings)
        return cls(
            student=student,
            encoders=Encoders(
                student=student,
                precision=settings.precision,
                compile=settings.compile,
                text_groups=settings.text_groups,
            ),
            optimizer=make_optimizer(student, settings),
            initial_logit_scale=float(student.module.logit_scale.detach()),
            sets_scale=settings.logit_scale is not None,
        )

    @torch.no_grad()
    def displacement(self, base: Path) -> float | None:
        """Return ‖w − w₀‖ / ‖w₀‖ over the trained weights w; w₀ are those in the folder `base`, read one by one.

        Weights that did not start there (an adapter's, a scale that `refine.logit_scale` sets) do not count; None where
        no others are trained.
        """
        moved, norm = [], []
        with safetensors.safe_open(base / WEIGHTS, framework="pt") as starts:
            there = set(starts.keys())
            for name, parameter in named_trainable(self.student):
                if name not in there or (name in SCALARS and self.sets_scale):
                    continue
                start = starts.get_tensor(name).to(parameter)
                moved.append(float(torch.linalg.vector_norm(parameter - start, dtype=torch.float64)))
                norm.append(float(torch.linalg.vector_norm(start, dtype=torch.float64)))
        if not norm:
            return None
        return math.hypot(*moved) / max(math.hypot(*norm), 1e-15)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What stays the same from the first step to the last, and what it makes of a batch."""

    recipe: Recipe
    teacher: Teacher
    part: CachedPart  # whose pairs are trained on
    plan: Plan
    settings: RefineSettings
    world: World

    def cut_texts(self, student: Clip, inputs: Inputs) -> Inputs:
        """Cut the token ids at the batch's longest caption where `refine.text_cut` says so."""
        if self.settings.text_cut != "batch" or student.text_cut_refusal or inputs.texts.is_floating_point():
            return inputs
        length = cut_length(student.text_lengths(inputs.texts), inputs.texts.shape[1])
        return inputs._replace(texts=inputs.texts[:, :length])

    def teacher_features(self, student: Clip, data: StepData) -> Features:
        """Give the teacher's raw features of the whole batch, on the student's device and in its dtype."""
        like = student.module.logit_scale
        return self.teacher.features(data.inputs, data.teacher_features, len(data.rows), self.world, like)

    def draws(self, rows: np.ndarray, step: int) -> Draws:
        """Name the random numbers that step number `step` draws for samples `rows`."""
        return Draws(
            seed=self.settings.seed,
            epoch=step // self.plan.steps_per_epoch,
            step=step,
            progress=step / self.plan.num_steps,
            key_digests=[self.part.key_digests[row].tobytes() for row in rows],
            teacher_mean=self.teacher.mean,
            teacher_std=self.teacher.std,
        )
