"""The refinement step: against the bare arithmetic, and what the allocator costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from pipeline_lib import model
from pipeline_lib.cache_teacher.reader import open_parts
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core import config
from pipeline_lib.core.distributed import World
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.epochs import Plan, StepData
from pipeline_lib.refine.loop import Clock, remaining_steps
from pipeline_lib.refine.optimiser import select_trainable
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.refine.state import Setup, State
from pipeline_lib.refine.step import take_step
from tests.bench.inputs import Report, alternate, paths_of
from tests.tiny_project import ROOT

T = TypeVar("T")


def start(
    root: Path, *, device: str = "cpu", pixels: bool = True, online: bool = False, **changes: Any
) -> tuple[State, Setup, Iterator[StepData], Clock]:
    """State and setup as the stage makes them, an endless run's batches, and the clock that counts waiting for them.

    `changes` are keys of `refine` with other values; `pixels`: whether stored ones are used; `online`: whether the
    teacher is run on each batch.
    """
    paths, params = paths_of(root), root / "params.yaml"
    student = model.load(paths.base, device=device, verify=False)
    part = open_parts(paths, student, pixels=pixels)["refine"]
    settings = replace(config.load(params, RefineSettings), **{"epochs": 10_000, **changes})
    teacher = model.load(paths.base, device=device, verify=False) if online else None
    setup = Setup(
        recipe=recipes.make_recipe(settings.recipe, config.raw_section(params, "recipes")),
        teacher=Teacher(student.logit_scale.detach(), online=teacher, precision=settings.precision),
        part=part,
        plan=Plan.of(settings, part.valid_rows),
        settings=settings,
        world=World(),
    )
    state, clock = State.start(student, settings), Clock()
    steps = remaining_steps(state, setup, config.load(params, RuntimeSettings))
    return state, setup, clock.count_waiting(steps), clock


def bare_step(student: model.Clip, settings: RefineSettings, recipe: recipes.Recipe, data: tuple) -> Callable[[], None]:
    """Forward, loss, backward and optimiser step on tensors in memory as anyone would write them.

    The towers are open_clip's own, texts have their whole length, kernels are any, AdamW is torch's default one.
    """
    trained = [parameter for parameter in student.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    inputs, teacher, draws = data

    def step() -> None:
        optimizer.zero_grad()
        recipes.total_loss(recipe(plain_features(student, inputs), teacher, draws)).backward()
        optimizer.step()

    return partial(with_any_kernel, step)


def plain_features(clip: model.Clip, inputs: Inputs) -> Features:
    """What open_clip's own towers make of pictures and of token ids at their whole length."""
    token_ids = F.pad(inputs.texts, (0, clip.context_length - inputs.texts.shape[1]))  # it pads with zeros
    images = clip.module.encode_image(clip.normalize(inputs.images), normalize=False)
    return Features(images, clip.module.encode_text(token_ids, normalize=False), clip.logit_scale)


def with_any_kernel(step: Callable[[], T]) -> T:
    """Take `step` out of the deterministic mode in which stages run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        return step()
    finally:
        torch.use_deterministic_algorithms(before)


def loop_against_bare(report: Report, name: str, root: Path, rounds: int) -> None:
    """The whole loop's step (reading, draws, gradients, bookkeeping) against the bare step, in CPU time.

    It must not be slower: groups of texts by length and fused AdamW pay for all that it does beside.
    """
    state, setup, steps, clock = start(root)
    data = next(steps)
    student = model.load(paths_of(root).base)
    select_trainable(student, setup.settings)
    batch = (data.inputs, setup.teacher_features(student, data), setup.draws(data.rows, 0))
    bare = bare_step(student, setup.settings, setup.recipe, batch)
    waited = clock.waited
    started = time.perf_counter()

    def whole() -> None:
        take_step(state, next(steps), setup)

    seconds = alternate(rounds, time.process_time, bare=bare, loop=whole)
    share = (clock.waited - waited) / (time.perf_counter() - started)
    note = f"bare {seconds['bare']:.3f} CPU s, loop {seconds['loop']:.3f} a step; waiting {share:.2%}; bound by FLOPs"
    report(f"refine_loop_{name}", seconds["bare"] / seconds["loop"], 1.0, note)
    report(f"refine_not_waiting_{name}", 1 - share, 0.97, f"measured over {time.perf_counter() - started:.0f} s")


def allocator(report: Report, root: Path) -> None:
    """Steps of the default model with glibc's default allocation against `runtime.keep_freed_memory`."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline_lib.core import runtime\n"
        "from tests.bench import loop as bench_loop\n"
        "if sys.argv[2] == 'keep': runtime.keep_freed_memory()\n"
        "state, setup, steps, _ = bench_loop.start(Path(sys.argv[1]))\n"
        "for _ in range(2): bench_loop.take_step(state, next(steps), setup)\n"
        "start = time.perf_counter()\n"
        "for _ in range(5): bench_loop.take_step(state, next(steps), setup)\n"
        "print(time.perf_counter() - start)\n"
    )
    times: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(2):
        for name, values in times.items():
            done = subprocess.run(
                [sys.executable, "-c", code, str(root), name], capture_output=True, text=True, cwd=ROOT
            )
            values.append(float(done.stdout))
    ratio = min(times["default"]) / min(times["keep"])
    report("allocator_keep_freed_memory", ratio, 1.0, "default model: page faults of short-lived tensors")
