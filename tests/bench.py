"""How near each stage comes to what the machine can do: ratios within one run, printed as a table, into bench.json.

    python -m tests.bench [name ...]

Both sides of a ratio are measured here, alternating, and medians are compared, so that a slow or busy machine moves
both. Nothing is asserted: a test must not depend on the clock. Sizes are a CPU's; README says what a GPU must show.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from pipeline_lib import artifacts, cache_writer, config, model, recipes, runtime, shards, training
from pipeline_lib.distributed import World
from pipeline_lib.features import Features, Inputs
from pipeline_lib.gradients import Encoders, backward, make_optimizer, select_trainable
from pipeline_lib.teacher_cache import embed_images, embed_texts, open_parts
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, write_params

RESULTS: dict[str, dict[str, float]] = {}
WORDS = "a man woman dog cat red blue riding standing on in the of with two street bench water table small large"


def report(name: str, ratio: float, goal: float, note: str) -> None:
    """Print and keep one ratio."""
    RESULTS[name] = {"ratio": round(ratio, 4), "goal": goal}
    met = "met" if ratio >= goal else "MISSED"
    print(f"{name:<38} {ratio:7.3f}   goal {goal:5.2f}   {met:<6}  {note}", flush=True)


def alternate(rounds: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


# --- inputs -----------------------------------------------------------------------------------------------------


def caption(generator: np.random.Generator) -> str:
    """As long as a COCO caption: 10.5 words on average, 8 to 22."""
    return " ".join(generator.choice(WORDS.split(), size=int(np.clip(generator.normal(10.5, 2.4), 8, 22))))


def jpeg(generator: np.random.Generator, size: tuple[int, int] = (640, 480)) -> bytes:
    """A smooth random photograph-like picture of COCO's usual size."""
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
        "data__parts": {"refine": 0.8, "val": 0.2},
        "runtime__num_threads": None,
        "shard__samples_per_shard": 128,
        "cache_teacher__chunk_size": 32,
        "refine__batch_size": 32,
        "cache_teacher__verify_share": 0.0,
    }
    write_params(root, **{**defaults, **values})
    return root


def quiet(stage: str, root: Path) -> None:
    """Run a stage in `root`."""
    run_stage(stage, root)
    runtime.prepare(seed=0, num_threads=None, deterministic=True)


def paths_of(root: Path) -> config.Paths:
    """The outputs of the project `root`."""
    return config.Paths(**{name: root / "data" / name for name in config.Paths.__dataclass_fields__})


# --- the refinement loop ----------------------------------------------------------------------------------------


def make_refiner(root: Path, work: Path) -> training.Refiner:
    """The loop as the stage builds it, endless."""
    paths = paths_of(root)
    student = model.load(paths.base)
    part = open_parts(paths, student, ["refine"])["refine"]
    settings = replace(config.load(root / "params.yaml", "refine"), epochs=10_000)
    blocks = config.raw_section(root / "params.yaml", "recipes")
    work.mkdir(parents=True, exist_ok=True)
    return training.Refiner(
        student=student,
        recipe=recipes.build("clip_refine", blocks),
        part=part,
        settings=settings,
        runtime=config.load(root / "params.yaml", "runtime"),
        work=work,
        teacher_logit_scale=student.logit_scale.detach(),
    )


def bare_step(student: model.Clip, settings: config.Refine, recipe: recipes.Recipe, data: tuple) -> Callable[[], None]:
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


def loop_against_bare(name: str, root: Path, rounds: int) -> None:
    """The whole loop's step (reading, draws, gradients, bookkeeping) against the bare step."""
    refiner = make_refiner(root, root / "work")
    steps = refiner._steps()
    data = next(steps)
    draws, teacher = refiner._draws(data.rows), refiner._teacher(data)
    student = model.load(paths_of(root).base)
    select_trainable(student, refiner.settings)
    bare = bare_step(student, refiner.settings, refiner.recipe, (data.inputs, teacher, draws))
    waited = refiner.waited
    started = time.perf_counter()

    def whole() -> None:
        refiner._one_step(next(steps))

    seconds = alternate(rounds, bare=bare, loop=whole)
    share = (refiner.waited - waited) / (seconds["loop"] * (rounds + 1))
    note = f"bare {seconds['bare']:.3f} s, loop {seconds['loop']:.3f} s a step; waiting {share:.2%}; bound by FLOPs"
    report(f"refine_loop_{name}", seconds["bare"] / seconds["loop"], 0.92, note)
    report(f"refine_not_waiting_{name}", 1 - share, 0.97, f"measured over {time.perf_counter() - started:.0f} s")


def against_released(root: Path, larger: Path, rounds: int) -> None:
    """Cached teacher and cut text against the method as released: teacher online, captions padded to 77."""
    paths = paths_of(root)
    refiner = make_refiner(root, root / "work")
    data = next(refiner._steps())
    draws, cached = refiner._draws(data.rows), refiner._teacher(data)
    student, recipe = refiner.student, refiner.recipe
    optimizer = make_optimizer(student, refiner.settings)
    captions = [refiner.part.entry(int(row))[1].captions for row in data.rows]
    full = student.tokenize([texts[0] for texts in captions])
    length = int(student.text_lengths(full).max())
    cut = full[:, : -(-length // 16) * 16]
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
            terms = backward(Encoders(student=student), recipe, inputs, features, draws)
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
    part = refiner.part
    samples = data.inputs.images, full[:, :]
    per_image = alternate(
        1, image=lambda: embed_images(student, samples[0], 32), text=lambda: embed_texts(student, cut, 32)
    )
    cache = (per_image["image"] + 5 * per_image["text"]) / 32  # seconds per sample, five captions
    epoch = len(part) / 32
    online, ours = 10 * epoch * seconds["released"], 10 * epoch * seconds["ours"] + len(part) * cache
    report("ten_recipes_derived", online / ours, 1.0, "ten one-epoch recipes on one cache against ten online runs")


def allocator(root: Path) -> None:
    """Steps of the default model with glibc's default allocation against `runtime.keep_freed_memory`."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline_lib import runtime\nfrom tests import bench\n"
        "if sys.argv[2] == 'keep': runtime.keep_freed_memory()\n"
        "refiner = bench.make_refiner(Path(sys.argv[1]), Path(sys.argv[1]) / 'work')\n"
        "steps = refiner._steps()\n"
        "for _ in range(2): refiner._one_step(next(steps))\n"
        "start = time.perf_counter()\n"
        "for _ in range(5): refiner._one_step(next(steps))\n"
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


# --- caching and sharding ---------------------------------------------------------------------------------------


def caching(root: Path) -> None:
    """The cache's units against decoding and bare forward of the same rows back to back."""
    paths = paths_of(root)
    clip = model.load(paths.base)
    part = shards.read_part(paths.shards / "refine")
    settings = config.load(root / "params.yaml", "cache_teacher")

    def bare() -> None:
        entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
        images = np.stack([clip.decode(shard.read_image(entry), 10**8) for shard, entry in entries])
        texts = [text for _, entry in entries for text in entry.captions]
        token_ids = clip.tokenize(texts)
        token_ids = token_ids[:, : -(-int(clip.text_lengths(token_ids).max()) // 16) * 16]
        embed_images(clip, torch.from_numpy(images), settings.chunk_size)
        embed_texts(clip, token_ids, settings.chunk_size)

    def cache() -> None:
        with tempfile.TemporaryDirectory(dir=root) as work:
            writer = cache_writer.Writer(clip, clip, settings, Path(work), World(), progress=False)
            writer.write([part])

    seconds = alternate(1, bare=bare, cache=cache)
    rate = part.num_samples / seconds["cache"]
    report(
        "cache_against_decode_and_forward", seconds["bare"] / seconds["cache"], 0.9, f"{rate:.1f} images/s; FLOPs bind"
    )
    texts = [text for entry in part.entries() for text in entry.captions][:64]
    full = clip.tokenize(texts)
    cut = full[:, : -(-int(clip.text_lengths(full).max()) // 16) * 16]
    times = alternate(2, full=lambda: embed_texts(clip, full, 32), cut=lambda: embed_texts(clip, cut, 32))
    report("cache_text_cut", times["full"] / times["cut"], 2.0, f"77 tokens against {cut.shape[1]}")


def sharding(root: Path) -> None:
    """What further images cost the shard stage, against copying and hashing them file by file in one process.

    The difference between a set and one four times as large: starting worker processes is not sharding.
    """
    place = root / "sharding"
    seconds: dict[str, list[float]] = {"copy": [], "shard": []}
    sizes = (400, 1600)
    source = root / "sharding_set"
    write_photos(source, 100)
    picture = [path.read_bytes() for path in sorted(source.glob("*.jpg"))]
    for size in sizes:
        here = place / str(size)
        (here / "set").mkdir(parents=True)
        (here / "more").mkdir()
        (here / "more" / "README").write_text("")
        with (here / "set" / "captions.jsonl").open("w") as file:
            for index in range(size):  # bytes behind the end-of-image mark make each file another one
                name = f"{index:06d}.jpg"
                (here / "set" / name).write_bytes(
                    picture[index % 100][:-2] + b"\xff\xfe\x00\x08%06d" % index + b"\xff\xd9"
                )
                file.write(json.dumps({"image": name, "captions": [f"picture {index}"]}) + "\n")
        os.symlink(write_tiny_clip(here / "tiny", seed=1), here / "clip")
        write_params(here, data__parts={"refine": 0.98, "val": 0.02}, shard__samples_per_shard=100)
        run_stage("base", here)
        times = alternate(2, copy=lambda here=here: _copy(here), shard=lambda here=here: run_stage("shard", here))
        for name, value in times.items():
            seconds[name].append(value)
    copy, shard = (values[1] - values[0] for values in seconds.values())
    rate = (sizes[1] - sizes[0]) / max(shard, 1e-9)
    report("shard_against_copy_and_hash", copy / max(shard, 1e-9), 0.6, f"{rate:.0f} images/s; disk and hash bind")


def _copy(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root) as target:
        for path in sorted((root / "set").glob("*.jpg")):
            data = path.read_bytes()
            hashlib.sha256(data).hexdigest()
            (Path(target) / path.name).write_bytes(data)


# --- growth -----------------------------------------------------------------------------------------------------

GROWTH = """
import json, resource, sys, time
from pathlib import Path
from tests.conftest import run_stage
root, stage = Path(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
run_stage(stage, root)
seconds = time.perf_counter() - start
anonymous = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
print(json.dumps({"seconds": seconds, "anonymous": int(anonymous[0].split()[1])}))
"""


def growth(root: Path, sizes: tuple[int, int] = (2_000, 50_000)) -> None:
    """Cost per sample and memory (without page cache) from the small to the large set, tiny model."""
    clip = write_tiny_clip(root / "tiny", seed=1)
    figures: dict[str, list[dict[str, float]]] = {"shard": [], "cache_teacher": [], "refine": []}
    for size in sizes:
        place = root / f"growth{size}"
        write_small_set(place / "set", size)
        (place / "more").mkdir()
        os.symlink(clip, place / "clip")
        write_params(
            place,
            data__parts={"refine": 0.98, "val": 0.02},
            shard__samples_per_shard=1000,
            cache_teacher__chunk_size=64,
            cache_teacher__verify_share=0.0,
            refine__batch_size=64,
            runtime__num_threads=2,
        )
        run_stage("base", place)
        for stage, rows in figures.items():
            command = [sys.executable, "-c", GROWTH, str(place), stage]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]) | {"size": size})
    for stage, (small, large) in figures.items():
        marginal = (large["seconds"] - small["seconds"]) / (large["size"] - small["size"])
        ratio = (small["seconds"] / small["size"]) / (large["seconds"] / large["size"])
        note = f"{1e3 * marginal:.2f} ms a sample; {sizes[0]} to {sizes[1]} samples"
        report(f"growth_time_{stage}", ratio, 0.9, note)
        memory = small["anonymous"] / large["anonymous"]
        report(
            f"growth_memory_{stage}", memory, 0.9, f"{small['anonymous'] // 1024} to {large['anonymous'] // 1024} MB"
        )


def write_small_set(directory: Path, count: int) -> None:
    """`count` distinct 16x16 PNG files with one caption each."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (directory / "captions.jsonl").open("w") as file:
        for index in range(count):
            image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(directory / f"{index:06d}.png", compress_level=0)
            file.write(json.dumps({"image": f"{index:06d}.png", "caption": f"{caption(generator)} {index}"}) + "\n")


# --- all --------------------------------------------------------------------------------------------------------


def main(names: list[str]) -> None:
    """Run the named measurements, or all; write bench.json."""
    runtime.prepare(seed=0, num_threads=None, deterministic=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        root = Path(folder)
        vit = write_vit(root / "vit", "ViT-B-32")
        photos = project(root / "photos", vit, 120)
        for stage in ("base", "shard"):
            quiet(stage, photos)
        wanted: dict[str, Callable[[], None]] = {
            "sharding": lambda: sharding(root),
            "caching": lambda: caching(photos),
            "released": lambda: against_released(photos, write_vit(root / "vit16", "ViT-B-16"), 3),
            "loop_vit": lambda: loop_against_bare("vit_b32", photos, 5),
            "growth": lambda: growth(root),
        }
        for name, call in wanted.items():
            if not names or name in names:
                if name in ("released", "loop_vit") and not (photos / "data/teacher").exists():
                    quiet("cache_teacher", photos)
                call()
        if (ROOT / "data/teacher/manifest.json").is_file() and (not names or "default" in names):
            default_model(ROOT)
        elif not names:
            print("default model: run `make run` first, then `python -m tests.bench default`")
    known = json.loads((ROOT / "bench.json").read_text()) if names and (ROOT / "bench.json").is_file() else {}
    artifacts.write_json(ROOT / "bench.json", {**known, **RESULTS})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - started:.0f} s, {peak:.1f} GB at most; written to bench.json")


def default_model(root: Path) -> None:
    """The model and set of `make run`, from its outputs."""
    loop_against_bare("default", root, 8)
    allocator(root)


if __name__ == "__main__":
    main(sys.argv[1:])
