"""The one training loop: a step, its row in the history, a checkpoint where one is due.

The student stays in eval mode with gradients on: with dropout on, step 0 would not equal the teacher. What a step sees
is a pure function of (seed, epoch, key) (`sampling`, `epochs`), so a run that was killed and resumed from a checkpoint
ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar

from pipeline_lib import terminal, tracking
from pipeline_lib.core import runtime
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.core.work_folders import temporary_experiment
from pipeline_lib.refine.checkpoint import Checkpoints
from pipeline_lib.refine.epochs import StepData, read_steps
from pipeline_lib.refine.state import Setup, State
from pipeline_lib.refine.step import take_step

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Clock:
    """The seconds since the loop began, and those of them in which it waited for data."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds until now, more than 0."""
        return max(time.perf_counter() - self.started, 1e-9)

    def count_waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on, and count the time until each is there."""
        before = time.perf_counter()
        for item in items:
            self.waited += time.perf_counter() - before
            yield item
            before = time.perf_counter()


def run_steps(
    state: State, setup: Setup, checkpoints: Checkpoints, how: RuntimeSettings, run: tracking.Run
) -> dict[str, float]:
    """Take the steps that remain; return figures about the run, times included.

    Raises:
        Stopped: A signal asked for it; there is a checkpoint of the last step.
        UserError: A loss is not finite, or MLflow is required and failed (noticed behind a checkpoint).
    """
    plan, world, resumed_at, clock = setup.plan, setup.world, state.step, Clock()
    with _progress_bar(state, setup, how) as bar, checkpoints.history.open("a", encoding="utf-8") as history:
        for data in clock.count_waiting(remaining_steps(state, setup, how)):
            row = take_step(state, data, setup)
            if world.is_main:
                history.write(json.dumps(row) + "\n")
            run.log_metrics(_curves(row), row["step"])
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", waiting=f"{clock.waited / clock.elapsed:.1%}", refresh=False)
            stop = world.any(runtime.stop_requested())
            if stop or (state.step % how.checkpoint_every == 0 and state.step < plan.num_steps):
                _write_checkpoint(state, checkpoints, history)
                if stop:
                    name = temporary_experiment()
                    again = f"the experiment again, with `-n {name}`," if name else "again"
                    at = f"step {state.step} of {plan.num_steps}"
                    log.warning("checkpoint written at %s; run %s to go on", at, again)
                    raise runtime.Stopped
                run.check()
    return _figures(state, setup, clock, resumed_at)


def remaining_steps(state: State, setup: Setup, how: RuntimeSettings) -> Iterator[StepData]:
    """Read the steps of the run from `state.step` on, ahead and by workers where reading is work.

    Each must have been taken before the next is asked for.
    """
    cuda = state.student.device.type == "cuda"
    workers = how.num_workers if cuda or not setup.part.pixels else 0
    while state.step < setup.plan.num_steps:
        yield from read_steps(
            setup.part, setup.plan, step=state.step, world=setup.world, num_workers=workers, pin_memory=cuda
        )


def _curves(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row of the history as points of curves, the learning rate in millionths: MLflow draws 5e-5 as 0."""
    points = {f"refine/{name}": value for name, value in row.items() if name not in ("step", "epoch", "learning_rate")}
    return points | {"refine/learning_rate_times_1e6": 1e6 * row["learning_rate"]}


def _write_checkpoint(state: State, checkpoints: Checkpoints, history: IO[str]) -> None:
    """Write the history, then the checkpoint: one whose rows were lost could not go on."""
    history.flush()
    os.fsync(history.fileno())
    checkpoints.save(state)
    checkpoints.setup.world.barrier()


def _progress_bar(state: State, setup: Setup, how: RuntimeSettings) -> Any:
    plan = setup.plan
    if setup.world.is_main:
        counts = plan.num_steps, plan.batch_size, plan.num_dropped
        log.info("%d steps of %d pairs, %d samples dropped per epoch", *counts)
    return terminal.progress(
        None,
        label="refine",
        total=plan.num_steps,
        initial=state.step,
        unit="step",
        enabled=how.progress and setup.world.is_main,
    )


def _figures(state: State, setup: Setup, clock: Clock, resumed_at: int) -> dict[str, float]:
    seconds = clock.elapsed
    rate = (state.step - resumed_at) * setup.plan.batch_size / seconds
    waiting = clock.waited / seconds
    if setup.world.is_main:
        log.info("%.0f s, %.1f pairs/s, %.1f %% of it waiting for data", seconds, rate, 100 * waiting)
    return {
        "num_steps": float(state.step),
        "num_dropped_per_epoch": float(setup.plan.num_dropped),
        "resumed_at": float(resumed_at),
        "seconds": seconds,
        "pairs_per_second": rate,
        "waiting_share": waiting,
    }
