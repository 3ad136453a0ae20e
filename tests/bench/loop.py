"""The refinement step: against the bare arithmetic, against the method as released, and what the allocator costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.reader import open_parts
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core import config
from pipeline_lib.core.distributed import World
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model.embed import embed_images, embed_texts
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.epochs import Plan, StepData
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.loop import Clock, remaining_steps
from pipeline_lib.refine.optimiser import make_optimizer, select_trainable
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.refine.state import Setup, State
from pipeline_lib.refine.step import take_step
from tests.bench.inputs import Report, alternate, paths_of
from tests.tiny_project import ROOT


def start(root: Path) -> tuple[State, Setup, Iterator[StepData], Clock]:
    """State and setup as the stage makes them, an endless run's batches, and the clock that counts waiting for them."""
    paths, params = paths_of(root), root / "params.yaml"
    student = model.load(paths.base)
    part = open_parts(paths, student)["refine"]
    settings = replace(config.load(params, RefineSettings), epochs=10_000)
    setup = Setup(
        recipe=recipes.make_recipe("clip_refine", config.raw_section(params, "recipes")),
        teacher=Teacher(student.logit_scale.detach()),
        part=part,
        plan=Plan.of(settings, part.valid_rows),
        settings=settings,
        world=World(),
    )
    state, clock = State.start(student, settings), Clock()
    steps = remaining_steps(state, setup, config.load(params, RuntimeSettings))
    return state, setup, clock.count_waiting(steps), clock


def bare_step(student: model.Clip, settings: RefineSettings, recipe: recipes.Recipe, data: tuple) -> Callable[[], None]:
    """Forward, loss, backward and optimiser step on tensors already in memory, written as anyone would."""
    optimizer = make_optimizer(student, settings)
    inputs, teacher, draws = data

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        features = Features(
            student.encode_image(inputs.images), student.encode_text(inputs.token_ids), student.logit_scale
        )
        recipes.total_loss(recipe(features, teacher, draws)).backward()
        optimizer.step()

    return step


def loop_against_bare(report: Report, name: str, root: Path, rounds: int) -> None:
    """The whole loop's step (reading, draws, gradients, bookkeeping) against the bare step."""
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

    seconds = alternate(rounds, bare=bare, loop=whole)
    share = (clock.waited - waited) / (seconds["loop"] * (rounds + 1))
    note = f"bare {seconds['bare']:.3f} s, loop {seconds['loop']:.3f} s a step; waiting {share:.2%}; bound by FLOPs"
    report(f"refine_loop_{name}", seconds["bare"] / seconds["loop"], 0.92, note)
    report(f"refine_not_waiting_{name}", 1 - share, 0.97, f"measured over {time.perf_counter() - started:.0f} s")


def against_released(report: Report, root: Path, larger: Path, rounds: int) -> None:
    """Cached teacher and cut text against the method as released: teacher online, captions padded to 77."""
    paths = paths_of(root)
    state, setup, steps, _ = start(root)
    data, student = next(steps), state.student
    draws, cached = setup.draws(data.rows, 0), setup.teacher_features(student, data)
    optimizer = make_optimizer(student, setup.settings)
    cut = data.inputs.token_ids  # of the captions drawn for this step, as cached
    full = torch.nn.functional.pad(cut, (0, student.context_length - cut.shape[1]))  # CLIP's tokenizer pads with 0
    teachers = {"same": model.load(paths.base), "larger": model.load(larger)}
    losses: dict[str, float] = {}

    def step(name: str, token_ids: torch.Tensor, teacher: model.Clip | None) -> Callable[[], None]:
        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            features = cached
            if teacher is not None:
                with torch.no_grad():
                    image, text = teacher.encode_image(data.inputs.images), teacher.encode_text(full)
                features = Features(image, text, teacher.logit_scale)
            inputs = Inputs(data.inputs.images, token_ids)
            terms = backward(Encoders(student=student), setup.recipe, inputs, features, draws)
            losses[name] = float(recipes.total_loss(terms))
            optimizer.step()

        return call

    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0  # so that every variant sees the same weights
    seconds = alternate(
        rounds,
        released=step("released", full, teachers["same"]),
        cached_full=step("cached_full", full, None),
        ours=step("ours", cut, None),
        larger=step("larger", full, teachers["larger"]),
    )
    worst = max(abs(losses[name] / losses["released"] - 1) for name in ("cached_full", "ours"))
    lengths = f"text cut from 77 to {cut.shape[1]}; same loss to {worst:.0e}"
    report("step_against_released", seconds["released"] / seconds["ours"], 1.7, lengths)
    report("step_cached_teacher_alone", seconds["released"] / seconds["cached_full"], 1.0, "1.33 by arithmetic")
    report("step_text_cut_alone", seconds["cached_full"] / seconds["ours"], 1.0, "student's text tower only")
    report("step_against_larger_online_teacher", seconds["larger"] / seconds["ours"], 1.7, "ViT-B/16 teaching ViT-B/32")
    part = setup.part
    images = data.inputs.images
    per_image = alternate(
        1, image=lambda: embed_images(student, images, 32), text=lambda: embed_texts(student, cut, 32)
    )
    cache = (per_image["image"] + 5 * per_image["text"]) / 32  # seconds per sample, five captions
    epoch = len(part) / 32
    online, ours = 10 * epoch * seconds["released"], 10 * epoch * seconds["ours"] + len(part) * cache
    report("ten_recipes_derived", online / ours, 1.0, "ten one-epoch recipes on one cache against ten online runs")


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
