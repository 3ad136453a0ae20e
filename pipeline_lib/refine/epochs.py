"""Which samples each step of a run takes, and how they are read: exactly once per epoch, in a seeded order.

The sequence of batches is a pure function of (seed, epoch, batch size): not of worker count, process count or
interruptions, because steps are picked by number from a fixed order and read by place, not from a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.core.distributed import World
from pipeline_lib.core.read_ahead import read_ahead
from pipeline_lib.model.features import Inputs
from pipeline_lib.refine.sampling import caption_choice, epoch_order
from pipeline_lib.refine.settings import RefineSettings


@dataclass(frozen=True)
class Plan:
    """Which rows each step of the run takes."""

    rows: np.ndarray  # the valid ones of the training part
    batch_size: int
    epochs: int
    keep_last: bool
    seed: int
    max_steps: int | None = None

    @classmethod
    def of(cls, settings: RefineSettings, rows: np.ndarray) -> Plan:
        """Make the plan that `settings` ask for."""
        return cls(
            rows=rows,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            keep_last=settings.last_batch == "keep",
            seed=settings.seed,
            max_steps=settings.max_steps,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        full, rest = divmod(len(self.rows), self.batch_size)
        return full + (self.keep_last and rest > 0)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def num_dropped(self) -> int:
        """Samples that an epoch does not visit: other ones each epoch."""
        return 0 if self.keep_last else len(self.rows) % self.batch_size

    @property
    def smallest_batch(self) -> int:
        """Rows of the smallest step of the run."""
        rest = len(self.rows) % self.batch_size
        return rest if self.keep_last and rest and self.num_steps >= self.steps_per_epoch else self.batch_size

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Shuffle the rows of an epoch and cut them into steps; each row is in at most one."""
        order = self.rows[epoch_order(len(self.rows), seed=self.seed, epoch=epoch)]
        starts = range(0, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]


class StepData(NamedTuple):
    """One step: the rows of the whole batch, this process's inputs, the teacher's features of the whole batch."""

    rows: np.ndarray
    inputs: Inputs
    teacher_features: tuple[torch.Tensor, torch.Tensor] | None


def read_batch(part: CachedPart, rows: np.ndarray, *, seed: int, epoch: int, world: World) -> StepData:
    """Read the samples `rows`, each with the caption that (seed, epoch, key) draws for it."""
    captions = [
        caption_choice(part.key_digests[row].tobytes(), int(part.num_captions[row]), seed=seed, epoch=epoch)
        for row in rows
    ]
    own = world.own_rows(len(rows))
    return StepData(rows, part.read_inputs(rows[own], captions[own]), part.read_features(rows, captions))


class _Steps:
    """The steps of an epoch, one item each."""

    def __init__(self, part: CachedPart, batches: list[np.ndarray], epoch: int, seed: int, world: World) -> None:
        self.part, self.batches, self.epoch, self.seed, self.world = part, batches, epoch, seed, world

    def __getitem__(self, index: int) -> StepData:
        return read_batch(self.part, self.batches[index], seed=self.seed, epoch=self.epoch, world=self.world)

    def __len__(self) -> int:
        return len(self.batches)


def read_steps(
    part: CachedPart, plan: Plan, *, step: int, world: World, num_workers: int, pin_memory: bool
) -> Iterator[StepData]:
    """Read the steps from `step` to the end of its epoch (or of the run), ahead by `num_workers` processes."""
    epoch, done = divmod(step, plan.steps_per_epoch)
    batches = plan.batches(epoch)[done : done + plan.num_steps - step]
    steps = _Steps(part, batches, epoch, plan.seed, world)
    return read_ahead(steps, num_workers=num_workers, pin_memory=pin_memory)
