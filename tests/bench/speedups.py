"""What makes the towers and the cache faster: the same work without it and with it, in turns, by CPU time.

That results stay the same is shown by the tests of `refine.gradients`, `model.pooled`, `core.runtime`, `cache_teacher`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher import run
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.compare import candidates
from pipeline_lib.core import config, shards
from pipeline_lib.core.distributed import World
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import pooled
from pipeline_lib.refine.step import take_step
from pipeline_lib.results.parameters import read_parameters
from tests.bench import loop
from tests.bench.inputs import Report, alternate, paths_of
from tests.tiny_project import ROOT, change

STEP = ("text_groups", "no_fill", "last_layer")  # texts by length, new tensors not filled, one row in the last layer


def of_a_step(report: Report, name: str, root: Path, rounds: int, which: Sequence[str] = STEP) -> None:
    """A step of `refine` on one batch, without each of `which` and with all."""
    state, setup, steps, _ = loop.start(root)
    data = next(steps)
    in_one_group = replace(state.encoders, text_groups=1)

    def step() -> None:
        take_step(state, data, setup)

    changes: dict[str, tuple[Any, str, Any]] = {  # what has which attribute, and its value without the speed-up
        "text_groups": (state, "encoders", in_one_group),
        "no_fill": (torch.utils.deterministic, "fill_uninitialized_memory", True),
        "last_layer": (pooled, "at_position", _whole_at_position),
    }
    calls = {speedup: partial(_with, *changes[speedup], step) for speedup in which}
    seconds = alternate(rounds, time.process_time, step=step, **calls)
    for speedup in which:
        note = f"{seconds[speedup]:.2f} s against {seconds['step']:.2f} s of CPU, {len(data.rows)} pairs"
        report(f"{name}_{speedup}", seconds[speedup] / seconds["step"], 1.0, note)


def _with(target: Any, attribute: str, value: Any, call: Callable[[], None]) -> None:
    """Call with another value of an attribute."""
    before = getattr(target, attribute)
    setattr(target, attribute, value)
    try:
        call()
    finally:
        setattr(target, attribute, before)


def _whole_at_position(transformer: Any, x: torch.Tensor, positions: torch.Tensor, attn_mask: Any = None) -> Any:
    return transformer(x, attn_mask=attn_mask)[torch.arange(len(x)), positions]


def across_tars(report: Report, root: Path) -> None:
    """Small tars into the cache: a teacher's passes end with each, or run across them."""
    clip, part = model.load(paths_of(root).base), shards.read_part(paths_of(root).shards / "refine")
    settings = config.load(root / "params.yaml", CacheTeacherSettings)
    how = replace(config.load(root / "params.yaml", RuntimeSettings), num_workers=0, progress=False)

    def cache() -> None:
        with tempfile.TemporaryDirectory(dir=root) as work:
            run.fill(run.units_of([part], Path(work), clip, stores_pixels=True), clip, clip, settings, how, World())

    seconds = alternate(1, time.process_time, each=partial(_with, run, "PASSES", 0, cache), across=cache)
    note = f"{seconds['each']:.1f} s against {seconds['across']:.1f} s of CPU, {len(part.shards)} tars"
    report("cache_across_tars", seconds["each"] / seconds["across"], 1.0, f"{note}, {part.num_samples} pictures")


def grouping(report: Report, few: int = 25, many: int = 200) -> None:
    """Configurations in `compare`: what each of many costs beside each of few."""
    parameters = read_parameters(ROOT / "params.yaml")

    def group(count: int) -> None:
        evaluation: Any = SimpleNamespace(results={"weights_digest": ""})  # all that grouping reads of one
        rates = [change(deepcopy(parameters), {"refine.learning_rate": 1e-6 * (number + 1)}) for number in range(count)]
        candidates.group([candidates.Candidate(str(n), rate, evaluation, evaluation) for n, rate in enumerate(rates)])

    seconds = alternate(3, time.process_time, few=partial(group, few), many=partial(group, many))
    note = f"{few} configurations {seconds['few']:.2f} s, {many} {seconds['many']:.2f} s"
    report("compare_growth", seconds["few"] / few / (seconds["many"] / many), 0.9, note)
