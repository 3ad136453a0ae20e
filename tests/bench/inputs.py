"""What is measured, and the clock: generated photographs, captions of COCO's length, random ViTs, tiny projects."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.paths import Paths
from tests.tiny_project import ROOT, write_params

Report = Callable[[str, float, float, str], None]  # name, ratio, goal, note
WORDS = "a man woman dog cat red blue riding standing on in the of with two street bench water table small large"


REAPER = """
import ctypes, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what the command leaves behind is waited for here
code = subprocess.run(sys.argv[1:], stdout=2).returncode
try:
    while True:
        os.wait()
except ChildProcessError:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)
sys.exit(code)
"""


class Used(NamedTuple):
    """Seconds of CPU, over all threads and processes, and by the clock; what the largest process held, where asked."""

    cpu: float
    wall: float
    gigabytes: float = 0.0


def stage_used(name: str, root: Path, **environment: str) -> Used:
    """What the whole process of a stage costs, with all that it starts (workers have another parent)."""
    began = time.perf_counter()
    command = [sys.executable, "-c", REAPER, sys.executable, "-m", f"stages.{name}"]
    where = {"cwd": root, "env": {**os.environ, "PYTHONPATH": str(ROOT), **environment}}
    done = subprocess.run(command, **where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    cpu, gigabytes = map(float, done.stdout.split())
    return Used(cpu, time.perf_counter() - began, gigabytes)


def alternate(
    rounds: int, clock: Callable[[], float] = time.perf_counter, **calls: Callable[[], object]
) -> dict[str, float]:
    """Median seconds of each call by `clock`, taken in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def caption(generator: np.random.Generator) -> str:
    """As long as a COCO caption: 10.5 words on average, 8 to 22."""
    return " ".join(generator.choice(WORDS.split(), size=int(np.clip(generator.normal(10.5, 2.4), 8, 22))))


def jpeg(generator: np.random.Generator, size: tuple[int, int] = (640, 480)) -> bytes:
    """A smooth random photograph-like image of COCO's usual size."""
    small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    noise = generator.normal(0, 6, (size[1], size[0], 3))
    array = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=90)
    return data.getvalue()


def write_photos(directory: Path, count: int) -> None:
    """`count` JPEG files with five captions each, as JSON Lines."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (directory / "captions.jsonl").open("w") as file:
        for index in range(count):
            (directory / f"{index:06d}.jpg").write_bytes(jpeg(generator))
            row = {"image": f"{index:06d}.jpg", "captions": [f"{caption(generator)} {index}" for _ in range(5)]}
            file.write(json.dumps(row) + "\n")


def write_vit(directory: Path, name: str) -> Path:
    """A randomly initialised open_clip model as a folder."""
    torch.manual_seed(0)
    module = open_clip.create_model(name)
    settings = {
        "model_cfg": open_clip.get_model_config(name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(module),
    }
    directory.mkdir(parents=True)
    artifacts.write_json(directory / model.CONFIG, settings)
    model.save_weights(module.state_dict(), directory / model.WEIGHTS)
    return directory


def project(root: Path, model_directory: Path, photos: int, **values: object) -> Path:
    """A project on generated photographs with every stage up to the cache run."""
    root.mkdir(parents=True)
    write_photos(root / "set", photos)
    (root / "more").mkdir()
    os.symlink(model_directory, root / "clip")
    defaults = {
        "data__parts": {"refine": 0.8, "val": 0.1, "eval": 0.1},
        "runtime__num_threads": None,
        "shard__samples_per_shard": 128,
        "cache_teacher__chunk_size": 32,
        "cache_teacher__text_cut": "chunk",
        "refine__batch_size": 32,
        "refine__text_cut": "groups",
        "cache_teacher__verify_share": 0.0,
    }
    write_params(root, **{**defaults, **values})
    return root


def quiet(stage: str, root: Path) -> None:
    """Run a stage in `root`."""
    from tests.conftest import run_stage  # pytest, which a GPU's machine may lack

    run_stage(stage, root)
    runtime.prepare(seed=0, num_threads=None, deterministic=True)


def paths_of(root: Path) -> Paths:
    """The outputs of the project `root`."""
    return Paths(**{name: root / "data" / name for name in Paths.__dataclass_fields__} | {"text": root / "data/base"})


def write_small_set(directory: Path, count: int) -> None:
    """`count` distinct 16x16 PNG files with one caption each."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (directory / "captions.jsonl").open("w") as file:
        for index in range(count):
            image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(directory / f"{index:06d}.png", compress_level=0)
            file.write(json.dumps({"image": f"{index:06d}.png", "caption": f"{caption(generator)} {index}"}) + "\n")
