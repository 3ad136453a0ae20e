"""The stages before the loop, and every stage's growth and start-up."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.cache_teacher.run import fill, units_of
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import config, shards
from pipeline_lib.core.distributed import World
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model.embed import cut_length, embed_images, embed_texts
from tests.bench.inputs import Report, alternate, paths_of, stage_used, write_photos, write_small_set
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, make_project, write_params


def caching(report: Report, root: Path) -> None:
    """The cache's units against decoding and bare forward of the same rows back to back."""
    paths = paths_of(root)
    clip = model.load(paths.base)
    part = shards.read_part(paths.shards / "refine")
    settings = config.load(root / "params.yaml", CacheTeacherSettings)
    how = replace(config.load(root / "params.yaml", RuntimeSettings), num_workers=0, progress=False)

    def bare() -> None:
        entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
        images = np.stack([clip.decode(shard.read_image(entry), 10**8) for shard, entry in entries])
        texts = [text for _, entry in entries for text in entry.captions]
        token_ids = clip.tokenize(texts)
        token_ids = token_ids[:, : cut_length(clip.text_lengths(token_ids), clip.context_length)]
        embed_images(clip, torch.from_numpy(images), settings.chunk_size)
        embed_texts(clip, token_ids, settings.chunk_size)

    def cache() -> None:
        with tempfile.TemporaryDirectory(dir=root) as work:
            units = units_of([part], Path(work), clip, stores_pixels=True)
            fill(units, clip, clip, settings, how, World())

    seconds = alternate(1, bare=bare, cache=cache)
    rate = part.num_samples / seconds["cache"]
    report(
        "cache_against_decode_and_forward", seconds["bare"] / seconds["cache"], 0.9, f"{rate:.1f} images/s; FLOPs bind"
    )
    texts = [text for entry in part.entries() for text in entry.captions][:64]
    full = clip.tokenize(texts)
    cut = full[:, : cut_length(clip.text_lengths(full), clip.context_length)]
    times = alternate(2, full=lambda: embed_texts(clip, full, 32), cut=lambda: embed_texts(clip, cut, 32))
    report("cache_text_cut", times["full"] / times["cut"], 2.0, f"77 tokens against {cut.shape[1]}")


def sharding(report: Report, root: Path, sizes: tuple[int, int] = (200, 800)) -> None:
    """What further images cost the shard stage, against copying, hashing and decoding each, in CPU time.

    The difference between a set and one four times as large: starting worker processes is not sharding. The other half
    of an image's time goes into what tells its picture from others and into tar and index, two members a sample.
    """
    place = root / "sharding"
    cpu: dict[str, list[float]] = {"copy": [], "shard": []}
    source = root / "sharding_set"
    write_photos(source, 100)
    photos = [np.asarray(Image.open(path)) for path in sorted(source.glob("*.jpg"))]
    for size in sizes:
        here = place / str(size)
        (here / "set").mkdir(parents=True)
        (here / "more").mkdir()
        (here / "more" / "README").write_text("")
        with (here / "set" / "captions.jsonl").open("w") as file:
            for index in range(size):  # moved sideways, each is another picture
                name, moved = f"{index:06d}.jpg", np.roll(photos[index % 100], 40 * (index // 100), axis=1)
                Image.fromarray(moved).save(here / "set" / name, quality=90)
                file.write(json.dumps({"image": name, "captions": [f"picture {index}"]}) + "\n")
        os.symlink(write_tiny_clip(here / "tiny", seed=1), here / "clip")
        write_params(here, data__parts={"refine": 0.97, "val": 0.02, "eval": 0.01}, shard__samples_per_shard=100)
        run_stage("base", here)
        cpu["shard"].append(min(stage_used("shard", here).cpu for _ in range(2)))
        began = time.process_time()
        _copy(here)
        cpu["copy"].append(time.process_time() - began)
    copy, shard = ((values[1] - values[0]) / (sizes[1] - sizes[0]) for values in cpu.values())
    note = f"CPU: {1e3 * copy:.1f} ms an image to copy, hash and decode, {1e3 * shard:.1f} ms to shard"
    report("shard_against_copy_hash_decode", copy / shard, 0.4, note)


def _copy(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root) as target:
        for path in sorted((root / "set").glob("*.jpg")):
            data = path.read_bytes()
            hashlib.sha256(data).hexdigest()
            hashlib.sha256(Image.open(io.BytesIO(data)).convert("RGB").tobytes())
            (Path(target) / path.name).write_bytes(data)


# --- growth -----------------------------------------------------------------------------------------------------

GROWTH = """
import json, sys, time
from pathlib import Path
from tests.conftest import run_stage
root, stage = Path(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
run_stage(stage, root)
seconds = time.perf_counter() - start
anonymous = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
print(json.dumps({"seconds": seconds, "memory": int(anonymous[0].split()[1]) / 1024}))
"""
STAGES = ("shard", "cache_teacher", "refine")


def growth(report: Report, root: Path, target: Path, sizes: tuple[int, ...] = (2_000, 10_000, 50_000)) -> None:
    """Cost per sample and memory (without page cache) from the smallest to the largest set, tiny model; drawn."""
    clip = write_tiny_clip(root / "tiny", seed=1)
    figures: dict[str, list[dict[str, float]]] = {stage: [] for stage in STAGES}
    for size in sizes:
        place = root / f"growth{size}"
        write_small_set(place / "set", size)
        (place / "more").mkdir()
        os.symlink(clip, place / "clip")
        write_params(
            place,
            data__parts={"refine": 0.97, "val": 0.02, "eval": 0.01},
            shard__samples_per_shard=1000,
            cache_teacher__chunk_size=64,
            cache_teacher__verify_share=0.0,
            refine__batch_size=64,
            runtime__num_threads=2,
        )
        run_stage("base", place)
        for stage, rows in figures.items():
            rows.append(_in_a_process(GROWTH, place, stage) | {"size": size})
        shutil.rmtree(place)
    for stage, rows in figures.items():
        small, large = rows[0], rows[-1]
        marginal = (large["seconds"] - small["seconds"]) / (large["size"] - small["size"])
        per_sample = [1e3 * row["seconds"] / row["size"] for row in rows]
        span = f"{sizes[0]:,} to {sizes[-1]:,} samples"
        note = f"{per_sample[0]:.2f} to {per_sample[-1]:.2f} ms a sample, {1e3 * marginal:.2f} a further one; {span}"
        report(f"growth_time_{stage}", per_sample[0] / per_sample[-1], 0.9, note)
        note = f"{small['memory']:.0f} to {large['memory']:.0f} MB of the process's own; {span}"
        report(f"growth_memory_{stage}", small["memory"] / large["memory"], 0.9, note)
    _draw_growth(figures, target)


def _in_a_process(code: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=path, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _draw_growth(figures: dict[str, list[dict[str, float]]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for stage, rows in figures.items():
        sizes = [row["size"] for row in rows]
        time_axes.plot(sizes, [1e3 * row["seconds"] / row["size"] for row in rows], marker="o", label=stage)
        memory_axes.plot(sizes, [row["memory"] for row in rows], marker="o", label=stage)
    for axes, label in ((time_axes, "ms per sample, start-up included"), (memory_axes, "MB of the process's own")):
        axes.set(xscale="log", xlabel="samples", ylabel=label, ylim=(0, None))
    time_axes.legend(frameon=False)
    figure.savefig(target, dpi=120)


# --- nothing to do ----------------------------------------------------------------------------------------------


def nothing_to_do(report: Report, project: Path) -> None:
    """`dvc repro` where all is up to date."""
    command = [sys.executable, "-m", "dvc", "repro"]
    subprocess.run(command, cwd=project, capture_output=True, check=True)  # brings up to date what is not
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        assert "up to date" in done.stdout, done.stdout
        seconds.append(time.perf_counter() - began)
    report("nothing_to_do", 2.0 / statistics.median(seconds), 1.0, f"{statistics.median(seconds):.2f} s, of 2 s")


# --- start-up ---------------------------------------------------------------------------------------------------

STARTUP = """
import importlib, json, os, sys, time
start = time.perf_counter()
from pathlib import Path
os.chdir(sys.argv[1])
importlib.import_module("stages." + sys.argv[2]).main(Path("params.yaml"))
seconds = time.perf_counter() - start
heavy = "torch open_clip timm transformers torchvision sklearn scipy matplotlib mlflow webdataset dvc pandas".split()
print(json.dumps({"seconds": seconds, **{name: 1 for name in heavy if name in sys.modules}}))
"""
IMPORTS = """
import importlib, json, sys, time
start = time.perf_counter()
for name in sys.argv[1].split(","):
    importlib.import_module(name)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def startup(report: Report, root: Path) -> None:
    """Each stage on a set of 96 tiny images against importing the packages it uses, both in fresh processes."""
    project = make_project(root / "startup")
    for stage in ("base", *STAGES, "evaluate", "report"):
        whole, bare = [], []
        for _ in range(2):
            found = _in_a_process(STARTUP, project, stage)
            whole.append(found.pop("seconds"))
            bare.append(_in_a_process(IMPORTS, ",".join([f"stages.{stage}", *found]))["seconds"])
        more = min(whole) - min(bare)
        note = (
            f"{more:.2f} s above importing {', '.join(sorted(found))} ({min(bare):.1f} s); work on 96 samples included"
        )
        report(f"startup_{stage}", (min(bare) + 1) / min(whole), 1.0, note)
