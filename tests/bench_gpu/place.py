"""What is measured on: drawn photographs as tars, randomly initialised models, their caches; made in a folder."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_lib.cache_teacher import run as cache_teacher
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import config, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.shard import run as shard
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.settings import DataSettings
from tests.bench.inputs import caption, jpeg, paths_of, write_vit
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, change


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    images: int = 8192
    size: tuple[int, int] = (640, 480)
    batch: int = 512
    large_batch: int = 128  # of ViT-L/14
    steps: int = 12  # at most, of a rate: within an epoch, for each epoch starts its readers anew
    seconds: float = 5.0  # at most, of a rate
    curve: int = 20  # steps of a loss curve
    matrix: int = 8192  # rows of the product that tells the peak


TOY = Sizes(images=48, size=(64, 48), batch=8, large_batch=8, steps=2, curve=3, matrix=64)


def draw(job: tuple[Path, int, tuple[int, int]]) -> str:
    """Write one photograph; its line of captions.jsonl, with five captions."""
    folder, number, size = job
    generator = np.random.default_rng(number)
    (folder / f"{number:06d}.jpg").write_bytes(jpeg(generator, size))
    captions = [f"{caption(generator)} {number}" for _ in range(5)]
    return json.dumps({"image": f"{number:06d}.jpg", "captions": captions}) + "\n"


@dataclass(frozen=True)
class Place:
    """A folder with a project a model, which share their tars; what is asked for is made once."""

    root: Path
    sizes: Sizes
    device: str
    toy: bool
    peaks: dict[str, float] = field(default_factory=dict)  # FLOP/s of a matrix product, by precision
    counted: dict[tuple[str, str], float] = field(default_factory=dict)  # FLOPs of a pair, by model and text cut

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def project(self, name: str) -> Path:
        """The project of a model: its base, params.yaml, the tars of all; no cache yet."""
        root = self.root / name
        if not root.exists():
            if self.toy:
                write_tiny_clip(root / "data/base", seed=1)
            else:
                write_vit(root / "data/base", name)
            self._write_params(root, self.sizes.batch if name == "ViT-B-32" else self.sizes.large_batch)
            (root / "data/shards").symlink_to(self.tars)
        return root

    def _write_params(self, root: Path, batch: int) -> None:
        values = {
            "data.format": "jsonl",
            "data.root": str(self.root / "set"),
            "data.annotations": "captions.jsonl",
            "data.parts": {"refine": 0.95, "val": 0.05},
            "data.evaluation": {},
            "shard.samples_per_shard": max(self.sizes.images // 16, 8),
            "cache_teacher.chunk_size": 8 if self.toy else 256,
            "refine.batch_size": batch,
            "evaluate.batch_size": 8 if self.toy else 256,
            "runtime.device": self.device,
            "runtime.num_workers": 0 if self.toy else runtime.available_cores(),
            "runtime.progress": False,
            "tracking.mode": "disabled",
        }
        (root / "params.yaml").write_text(json.dumps(change(config.read_params(ROOT / "params.yaml"), values)))

    @cached_property
    def photos(self) -> Path:
        """The drawn set."""
        folder = self.root / "set"
        folder.mkdir()
        jobs = [(folder, number, self.sizes.size) for number in range(self.sizes.images)]
        if self.toy:
            rows = [draw(job) for job in jobs]
        else:
            with multiprocessing.get_context("spawn").Pool(runtime.available_cores()) as pool:
                rows = pool.map(draw, jobs, chunksize=16)
        (folder / "captions.jsonl").write_text("".join(rows))
        return folder

    @cached_property
    def tars(self) -> Path:
        """The set as `shard` writes it."""
        assert self.photos.is_dir()
        target, trained_on = self.root / "shards", self.root / "trained_on.jsonl"
        trained_on.write_text("")
        self._write_params(self.root, self.sizes.batch)
        data, settings = (config.load(self.root / "params.yaml", kind) for kind in (DataSettings, ShardSettings))
        shard.run(data, settings, trained_on=trained_on, target=target, fingerprint="bench", progress=False)
        return target

    def cached(self, name: str) -> Path:
        """The project of a model with a cache, the first one that was made."""
        root = self.project(name)
        if not (root / "data/teacher").exists():
            self.cache(name)
        return root

    def cache(self, name: str, **changes: Any) -> dict[str, float]:
        """Fill the teacher cache of a model, over one that is there; what the stage tells its tracker."""
        params = self.project(name) / "params.yaml"
        settings = replace(config.load(params, CacheTeacherSettings), **changes)
        how = config.load(params, RuntimeSettings)
        return cache_teacher.run(paths_of(params.parent), settings, how, World(), "bench")["metrics"]
