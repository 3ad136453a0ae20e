"""What evaluation costs beyond running the model: each part against the bare embedding, and memory at the size of COCO.

    python -m tests.bench.evaluation          # needs the outputs of `make run` for the first half
    python -m tests.bench.evaluation 31000    # images of the synthetic set, five captions each (here: Flickr30k)

The share of a part is its time by that of embedding in the same run, so that a busy machine slows both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline_lib import metrics
from pipeline_lib.core import config, runtime
from pipeline_lib.evaluate import evaluation, run, scoring
from pipeline_lib.evaluate.embedded import EmbeddedSet, EmbeddedTask, modality_means
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.inputs import open_inputs, open_model
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.report.run import run as write_report
from tests.bench.inputs import Report, paths_of
from tests.tiny_project import ROOT

MODEL_RUNS = ("embed", "linear_probe", "few_shot", "centring", "wise_ft")  # they run the model or train on its features
GOAL = 1 / 1.1  # all others together take less than a tenth of the embedding
WIDTH, CAPTIONS, GIGABYTES = 512, 5, 2.0


def measure(report: Report, root: Path = ROOT) -> None:
    """Time of each part on the default set (the project `root` after `make run`), memory of a COCO-sized one."""
    if (root / "data/eval/refined/manifest.json").is_file():
        default_set(report, root)
    else:
        print("evaluation of the default: run `make run` first, then `python -m tests.bench evaluation`")
    synthetic_set(report, 5000)


# --- the default ------------------------------------------------------------------------------------------------


def default_set(report: Report, root: Path) -> None:
    """The refined model of `make run` on its own sets, as the stage does it, into a folder that is thrown away."""
    start = time.perf_counter()
    for name in ("sklearn.linear_model", "threadpoolctl", "scipy.stats", "matplotlib.figure"):
        importlib.import_module(name)
    imports = time.perf_counter() - start
    params = root / "params.yaml"
    settings, paths = config.load(params, EvaluateSettings), paths_of(root)
    clip, base_weights, _ = open_model("refined", paths, torch.device("cpu"))
    inputs = dataclasses.replace(open_inputs(paths.shards, settings), base_weights=base_weights)
    embedder = Embedder(
        clip=clip,
        batch_size=settings.batch_size,
        prompt=settings.prompt,
        ensemble=settings.ensemble,
        num_workers=2,
        progress=False,
    )
    evaluated = evaluation.evaluate(embedder, "refined", inputs, settings)
    with tempfile.TemporaryDirectory() as folder, scoring.Stopwatch(evaluated.seconds)("write"):
        run.write_evaluation(evaluated, settings, Path(folder, "refined"), Path(folder, "refined.json"))
    embed = evaluated.seconds["embed"]
    for part, seconds in evaluated.seconds.items():
        print(f"    {part:<20} {seconds:7.2f} s  {seconds / embed:7.1%} of the embedding")
    print(f"    {'imports, once':<20} {imports:7.2f} s  {imports / embed:7.1%}")
    rest = sum(seconds for part, seconds in evaluated.seconds.items() if part not in MODEL_RUNS)
    note = f"embedding / (embedding + {', '.join(p for p in evaluated.seconds if p not in MODEL_RUNS)}); {rest:.1f} s"
    report("evaluation, default", embed / (embed + rest), GOAL, note)
    with contextlib.chdir(root), tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_report(read_inputs(params), Path(folder, "report"))
        seconds = time.perf_counter() - start
    print(f"    {'the page (report)':<20} {seconds:7.2f} s  {seconds / embed:7.1%}, does not grow with the set")


# --- COCO -------------------------------------------------------------------------------------------------------


def synthetic_set(report: Report, images: int) -> None:
    """Retrieval, then everything that is scored, on random features of `images` images with five captions each."""
    for name, work in (("retrieval", retrieve), ("all scores", score)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own, so that its peak is its own
            seconds, start, peak = pool.apply(work, (images, torch.get_num_threads()))
        size = f"{images} x {images * CAPTIONS}"
        note = f"{GIGABYTES:g} GB / peak; {peak:.2f} GB ({start:.2f} before), {seconds:.1f} s, {size}"
        report(f"memory, {name}, COCO" if images == 5000 else f"memory, {name}", GIGABYTES / peak, 1.0, note)


def retrieve(images: int, threads: int) -> tuple[float, float, float]:
    """Seconds of both directions of retrieval; gigabytes before (torch and the features) and at most."""
    torch.set_num_threads(threads)
    one = features(images)
    before, start = peak_gigabytes(), time.perf_counter()
    metrics.retrieval_ranks(one.raw_image_features, one.raw_text_features, one.text_image_index)
    return time.perf_counter() - start, before, peak_gigabytes()


def score(images: int, threads: int) -> tuple[float, float, float]:
    """The same for retrieval, zero-shot, gap suite and intervals, as they are and mean-centred."""
    torch.set_num_threads(threads)
    settings = config.load(ROOT / "params.yaml", EvaluateSettings)
    one = features(images)
    before, start, watch = peak_gigabytes(), time.perf_counter(), scoring.Stopwatch()
    evaluation._score_set(one, settings, modality_means(one), watch)
    seconds = time.perf_counter() - start
    for part, value in watch.seconds.items():
        print(f"    {part:<20} {value:7.2f} s", flush=True)
    return seconds, before, peak_gigabytes()


def features(images: int) -> EmbeddedSet:
    """Images with five noisy captions each and a task of a hundred classes; one image stands twice."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, WIDTH, generator=generator)
    index = torch.arange(images).repeat_interleave(CAPTIONS)
    text = image[index].add_(torch.randn(len(index), WIDTH, generator=generator), alpha=3)
    image[1] = image[0]
    prompts = torch.randn(100, 5, WIDTH, generator=generator)
    names = tuple(map(str, range(100)))
    task = EmbeddedTask(names, torch.arange(images) % 100, {"single": prompts[:, :1], "ensemble": prompts})
    hashes = ("0", "0", *map(str, range(2, images)))
    keys, captions = tuple(map(str, range(images))), tuple(map(str, range(len(index))))
    return EmbeddedSet("coco", "", keys, hashes, captions, index, image, text, 100.0, {"class": task})


def peak_gigabytes() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def _print(name: str, ratio: float, goal: float, note: str) -> None:
    print(f"{name:<36} {ratio:7.3f}  goal {goal:5.2f}  {'met' if ratio >= goal else 'MISSED':<6}  {note}", flush=True)


if __name__ == "__main__":
    runtime.prepare(seed=0, num_threads=None, deterministic=True)
    if sys.argv[1:]:
        synthetic_set(_print, int(sys.argv[1]))
    else:
        measure(_print)
