"""Embedding: open_clip with webdataset and a DataLoader against `cache_teacher`; after how many runs a cache pays."""

from __future__ import annotations

import shutil
from dataclasses import replace

import safetensors.torch
import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.reader import open_parts
from pipeline_lib.cache_teacher.run import fill, units_of
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import config, distributed, shards
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model.features import row_difference
from tests.peers.inputs import World, make
from tests.peers.sides import Peer, in_this_process
from tests.peers.table import Table


def embedding(table: Table, world: World) -> None:
    """Both as whole processes, from their start to features on disk; the features must agree."""
    target = world.root / "features.safetensors"
    tars = [tar for part in ("refine", "val") for tar in world.tars(part)]
    theirs, ours = [], []
    for _ in range(world.sizes.rounds):
        arguments = (world.sizes.threads, world.weights, world.sizes.batch, target, *tars)
        with Peer("embedding", *arguments, threads=world.sizes.threads, folder=world.root) as peer:
            theirs.append(peer.used())
        shutil.rmtree(world.paths.teacher)
        shutil.rmtree(world.paths.pixels)
        ours.append(world.stage("cache_teacher"))
    parts = open_parts(world.paths, model.load(world.paths.base))
    both = (parts[name].read_features(rows := range(len(parts[name])), [0] * len(rows)) for name in ("refine", "val"))
    cached = [torch.cat(side) for side in zip(*both, strict=True)]
    found = safetensors.torch.load_file(target)
    worst = max(map(row_difference, cached, (found["image_features"], found["text_features"])))
    assert worst < 1e-5, worst
    note = f"{len(cached[0])} pairs, whole processes; features to {worst:.0e}; here also verified, pixels kept"
    table.compare("embedding", 1.3, theirs, ours, note)


def cost(world: World) -> float:
    """CPU seconds that a picture with its captions costs the cache, without the start of the stage."""
    clip = model.load(world.paths.base)
    part = shards.read_part(world.paths.shards / "refine")
    settings = config.load(world.root / "params.yaml", CacheTeacherSettings)
    how = replace(config.load(world.root / "params.yaml", RuntimeSettings), progress=False)

    def call() -> None:
        units = units_of([part], world.root / "work", clip, stores_pixels=True)
        fill(units, clip, clip, settings, how, distributed.World())

    used = in_this_process(call)
    shutil.rmtree(world.root / "work")
    return used.cpu / part.num_samples


def break_even(table: Table, world: World) -> None:
    """Runs after which the cache has saved its cost, against distillation by open_clip's trainer."""
    if "saved" not in table.facts:
        raise SystemExit("break_even: run the part `distillation` before, at the same sizes: it says what a run saves")
    saved = table.facts["saved"]
    five = make(world.root / "five", replace(world.sizes, pairs=4 * world.sizes.batch), captions_each=5)
    for name in ("base", "shard"):
        five.stage(name)
    for captions, of, goal in ((1, world, 1.0), (5, five, 1.5)):
        spent = cost(of)
        note = f"{spent:.3f} CPU s to cache a picture, {saved:.3f} saved a pair and run"
        table.add(f"runs until the cache pays, captions: {captions}", [spent / saved], goal, note, at_most=True)
