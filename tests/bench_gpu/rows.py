"""What is measured, most important first: a row is a function that returns its figures, by the library's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline_lib import model, tracking
from pipeline_lib.core import config, runtime, shards
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.refine.checkpoint import Checkpoints
from pipeline_lib.refine.step import take_step
from tests.bench import loop
from tests.bench.inputs import paths_of
from tests.bench_gpu.place import Place

SMALL, LARGE = "ViT-B-32", "ViT-L-14"
Figures = dict[str, Any]
MATRICES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def all_rows(place: Place) -> dict[str, Callable[[], Figures]]:
    """Every row by its name, in the order in which they run."""
    small = partial(refine, place, SMALL)
    large = partial(refine, place, LARGE)
    return {
        "peak": partial(peak, place),
        "shard": partial(sharding, place),
        "cache_teacher fp32": partial(caching, place, SMALL),
        "refine fp32": small,
        "refine tf32": partial(small, precision="tf32"),
        "refine bf16": partial(small, precision="bf16"),
        "refine bf16, texts whole": partial(small, precision="bf16", text_cut="set"),
        "refine bf16, teacher online": partial(small, precision="bf16", online=True),
        "refine bf16, images decoded": partial(small, precision="bf16", pixels=False),
        "refine bf16, micro-batches": partial(small, precision="bf16", micro_batch=place.sizes.batch // 4),
        "bits": partial(bits, place),
        "loss curves": partial(curves, place),
        "refine bf16, any kernel": partial(small, precision="bf16", deterministic=False),
        "cache_teacher bf16": partial(caching, place, SMALL, precision="bf16"),
        "evaluate": partial(evaluating, place),
        "cache_teacher L/14 bf16": partial(caching, place, LARGE, precision="bf16"),
        "refine L/14 bf16": partial(large, precision="bf16"),
        "refine L/14 tf32": partial(large, precision="tf32"),
        "refine L/14 bf16, teacher online": partial(large, precision="bf16", online=True),
        "refine L/14 bf16, micro-batches": partial(large, precision="bf16", micro_batch=place.sizes.large_batch // 4),
        "refine bf16, compiled": partial(small, precision="bf16", text_cut="set", compile=True),
        "refine L/14 bf16, compiled": partial(large, precision="bf16", text_cut="set", compile=True),
    }


def peak(place: Place, repetitions: int = 10) -> Figures:
    """TFLOP/s of a product of two large random matrices: what shares are shares of."""
    found = {}
    size = place.sizes.matrix
    for name, dtype in MATRICES.items():
        a, b = (torch.randn(size, size, device=place.device, dtype=dtype) for _ in range(2))
        with runtime.tf32(name == "tf32"):
            for number in range(repetitions + 2):
                if number == 2:
                    place.synchronize()
                    began = time.perf_counter()
                a @ b
            place.synchronize()
        place.peaks[name] = repetitions * 2 * size**3 / (time.perf_counter() - began)
        found[f"{name}_tflops"] = place.peaks[name] / 1e12
    return found


def sharding(place: Place) -> Figures:
    """Images a second through `shard`, which decodes and hashes each; of the processors, not the device."""
    assert place.photos.is_dir()
    began = time.perf_counter()
    assert place.tars.is_dir()
    return {"images_per_s": place.sizes.images / (time.perf_counter() - began)}


def caching(place: Place, name: str, **changes: Any) -> Figures:
    """Images a second through `cache_teacher`, with their five captions, verified."""
    measured = _with_memory(place, lambda: place.cache(name, **changes))
    return {"images_per_s": place.sizes.images / measured["seconds"], "gb": measured["gb"]}


def refine(place: Place, name: str, *, deterministic: bool = True, **changes: Any) -> Figures:
    """Pairs a second of the loop, its share of the peak, its waiting for data, the most memory."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = _with_memory(place, lambda: _rate(place, name, changes))
    finally:
        torch.use_deterministic_algorithms(True)
    text_cut = changes.get("text_cut", "groups")
    if (name, text_cut) not in place.counted:
        place.counted[name, text_cut] = _flops(place, name, text_cut)
    flops = found["pairs_per_s"] * place.counted[name, text_cut]
    precision = changes.get("precision", "fp32")
    if not place.peaks:
        peak(place)
    return found | {"tflops": flops / 1e12, "of_peak": flops / place.peaks[precision]}


def _rate(place: Place, name: str, changes: Figures, warm_up: int = 3) -> Figures:
    state, setup, steps, clock = loop.start(place.cached(name), device=place.device, **changes)
    with closing(steps):
        for _ in range(warm_up):
            take_step(state, next(steps), setup)
        place.synchronize()
        began, waited, first = time.perf_counter(), clock.waited, state.step
        while state.step - first < place.sizes.steps and time.perf_counter() - began < place.sizes.seconds:
            take_step(state, next(steps), setup)
        place.synchronize()
    seconds, number = time.perf_counter() - began, state.step - first
    rate = number * setup.plan.batch_size / seconds
    return {"pairs_per_s": rate, "steps": number, "waiting": (clock.waited - waited) / seconds}


def _flops(place: Place, name: str, text_cut: str) -> float:
    """FLOPs of a pair, forward and backward, without a teacher and without what micro-batches compute again."""
    state, setup, steps, _ = loop.start(place.cached(name), device=place.device, text_cut=text_cut)
    with closing(steps), FlopCounterMode(display=False) as counter:
        take_step(state, next(steps), setup)
    return counter.get_total_flops() / setup.plan.batch_size


def _with_memory(place: Place, call: Callable[[], Figures]) -> Figures:
    """What `call` returns, with the most memory of the device that it held, `gb`."""
    if place.device != "cuda":
        return call() | {"gb": 0.0}
    torch.cuda.reset_peak_memory_stats()
    return call() | {"gb": torch.cuda.max_memory_allocated() / 1e9}


def _run(place: Place, steps_to_take: int, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the last weights of a run."""
    state, setup, steps, _ = loop.start(place.cached(SMALL), device=place.device, **changes)
    with closing(steps):
        losses = [take_step(state, next(steps), setup)["loss"] for _ in range(steps_to_take)]
    return losses, {key: tensor.cpu() for key, tensor in state.student.module.state_dict().items()}


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def bits(place: Place, half: int = 2) -> Figures:
    """Whether a run has the weights of one like it, and of one that was stopped in the middle and went on."""
    found = {}
    for precision in ("fp32", "bf16"):
        _, whole = _run(place, 2 * half, precision=precision)
        _, again = _run(place, 2 * half, precision=precision)
        found[f"{precision}_repeats"] = _equal(whole, again)
        found[f"{precision}_resumes"] = _equal(whole, _resumed(place, half, precision=precision))
    return found


def _resumed(place: Place, half: int, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights of a run that wrote a checkpoint after `half` of its steps, was gone, and came back."""
    root = place.cached(SMALL)
    how = config.load(root / "params.yaml", RuntimeSettings)
    work = root / "checkpoint"
    work.mkdir(exist_ok=True)
    for begins in (True, False):
        state, setup, steps, _ = loop.start(root, device=place.device, **changes)
        checkpoints = Checkpoints(work=work, setup=setup, runtime=how, run=tracking.Run())
        with closing(steps):
            if not begins:
                checkpoints.resume(state)
            for _ in range(half):
                take_step(state, next(steps), setup)
        if begins:
            checkpoints.history.write_text("{}\n" * half)
            checkpoints.save(state)
    return {key: tensor.cpu() for key, tensor in state.student.module.state_dict().items()}


def curves(place: Place) -> Figures:
    """The loss step by step in each precision, and the largest relative distance from that of fp32."""
    losses = {name: _run(place, place.sizes.curve, precision=name)[0] for name in ("fp32", "tf32", "bf16")}
    distances = {
        f"{name}_distance": max(abs(a / b - 1) for a, b in zip(losses[name], losses["fp32"], strict=True))
        for name in ("tf32", "bf16")
    }
    return losses | {"first": losses["fp32"][0], "last": losses["fp32"][-1]} | distances


def evaluating(place: Place) -> Figures:
    """Images a second through `evaluate`'s embedding, with their five captions; decoding included."""
    paths = paths_of(place.project(SMALL))
    how = config.load(place.project(SMALL) / "params.yaml", RuntimeSettings)
    clip, part = model.load(paths.base, device=place.device), shards.read_part(paths.shards / "refine")
    size = 8 if place.toy else 256
    embedder = Embedder(clip, size, prompt="{}", ensemble="set", num_workers=how.num_workers, progress=False)
    began = time.perf_counter()
    embedder.embed(part)
    return {"images_per_s": part.num_samples / (time.perf_counter() - began)}
