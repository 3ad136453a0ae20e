"""A small project folder as it stands after the evaluate stage: synthetic features and drawn images, real evaluation.

Refinement narrows the gap and gains retrieval, and costs a little zero-shot, so that every kind of verdict occurs.
"""

import dataclasses
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.distributed import World
from pipeline_lib.core.made_with import write_made_with
from pipeline_lib.core.truncation import Truncation
from pipeline_lib.evaluate import evaluation, run, wise_ft
from pipeline_lib.evaluate.embedded import EmbeddedSet, EmbeddedTask
from pipeline_lib.evaluate.inputs import EvaluationInputs
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.results.parameters import read_parameters
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.settings import DataSettings

ROOT = Path(__file__).parents[1]
CLASSES, TASK = ("round", "square", "striped", "plain"), "shape"
WIDTH, PER_IMAGE = 24, 2
SIZES = {"val": 60, "eval": 120}
PREPROCESS = {
    "size": [48, 48],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def make_project(root: Path, *, seed=0, recipe="clip_refine", **options) -> Path:
    """Fill `root` with params.yaml and what `fill_project` makes, once a process and a choice; returns params.yaml."""
    made = _made(seed, recipe, tuple(sorted(options.items())))
    shutil.copytree(made.name, root, dirs_exist_ok=True)
    return root / "params.yaml"


@cache
def _made(seed, recipe, options):
    folder = tempfile.TemporaryDirectory()  # until the process ends
    write_params(Path(folder.name), seed, recipe)
    fill_project(Path(folder.name), **dict(options))
    return folder


def write_params(root: Path, seed=0, recipe="clip_refine") -> None:
    params = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("recipe: clip_refine", f"recipe: {recipe}"),
        ("  seed: 0\n  epochs: 1", f"  seed: {seed}\n  epochs: 1"),
        ("bootstrap_samples: 1000", "bootstrap_samples: 200"),
        ("wise_ft: [0.5]", "wise_ft: [0.25, 0.5, 0.75]"),
    ):
        assert old in params
        params = params.replace(old, new)
    (root / "params.yaml").write_text(params)


def read_report_inputs(root, monkeypatch, **changes):
    """What a page of the project is made of, read inside its folder, with fields replaced."""
    monkeypatch.chdir(root)
    return dataclasses.replace(read_inputs(Path("params.yaml")), **changes)


def fill_project(root: Path, *, gain=1.0, loss=1.0, with_captions=True, with_task=True, centred=True) -> None:
    """Make data/{base,refined,teacher,shards,eval} as params.yaml says.

    `gain` moves pairs together, `loss` moves the class prompts away, `refine.seed` is the luck of the refinement.
    """
    params_file, data = root / "params.yaml", root / "data"
    settings, seed = config.load(params_file, EvaluateSettings), config.load(params_file, RefineSettings).seed
    parts = {
        name: write_part(
            data / "shards" / name,
            size,
            with_captions=with_captions and (centred or name != "val"),
            with_task=with_task,
        )
        for name, size in SIZES.items()
    }
    digests = {name: part.digest for name, part in parts.items()}
    numbers = {"refine": {"num_samples": 512}}
    artifacts.write_manifest(data / "shards", "shard", parts=digests, numbers=numbers)
    refined = f"refined {seed} {gain} {loss}"
    for model, weights, gain_now, loss_now, luck in (
        ("base", "base", 0, 0, None),
        ("refined", refined, gain, loss, seed),
    ):
        embedded = {name: embed(part, gain_now, loss_now, luck) for name, part in parts.items()}
        clip = SimpleNamespace(facts={"weights_digest": digest(weights)})
        embedder = SimpleNamespace(
            clip=clip,
            world=World(),
            embed=lambda part, sets=embedded: sets[part.name],
            count_truncated=count_texts,
        )
        found = evaluation.evaluate(embedder, model, EvaluationInputs([parts["eval"]], parts["val"]), settings)
        if model == "refined":
            more = {"val": 2, "eval": 1}  # so that the best mix on val is not the best on eval
            found.results["wise_ft"] = [
                {"mix": x}
                | wise_ft.score_mix(
                    [embed(part, more[name] * gain * x, loss * x**2, seed) for name, part in parts.items()], settings
                )
                for x in settings.wise_ft
            ]
        run.write_evaluation(found, settings, data / "eval" / model, data / "eval" / f"{model}.json")
    write_models(data, refined, read_parameters(params_file))
    sections = {kind: config.load(params_file, kind) for kind in (DataSettings, BaseSettings, ShardSettings)}
    write_made_with(data / "base", sections[DataSettings], sections[BaseSettings])
    write_made_with(data / "shards", sections[DataSettings], sections[ShardSettings])


def embed(part, gain, loss, luck):
    """Features of a part: concept + noise, the modalities `gap` apart; classes are directions among the concepts."""
    size = part.num_samples
    truth = np.random.default_rng(size)
    classes = np.random.default_rng(0).normal(size=(len(CLASSES), WIDTH))
    labels = np.arange(size) % len(CLASSES)
    concepts = truth.normal(size=(size, WIDTH)) + 0.8 * classes[labels]
    spread, shift = 1.5 - 0.25 * gain, (1.2 - 0.5 * gain) * np.sqrt(WIDTH) / 2 * np.eye(WIDTH)[0]
    image = concepts + spread * truth.normal(size=(size, WIDTH)) + shift
    text = np.repeat(concepts, PER_IMAGE, axis=0) + spread * truth.normal(size=(PER_IMAGE * size, WIDTH)) - shift
    prompts = classes + (0.9 + 0.9 * loss) * np.random.default_rng(5).normal(size=classes.shape) - shift / 2
    if luck is not None:
        image += 0.3 * np.random.default_rng(1 + luck).normal(size=image.shape)
    entries = list(part.entries())
    index = torch.arange(size).repeat_interleave(torch.tensor([len(entry.captions) for entry in entries]))
    prompts = torch.tensor(prompts, dtype=torch.float32)[:, None]
    task = EmbeddedTask(CLASSES, torch.tensor(labels), {"single": prompts + 0.1, "ensemble": prompts})
    return EmbeddedSet(
        name=part.name,
        digest=part.digest,
        keys=tuple(entry.key for entry in entries),
        image_hashes=tuple(entry.sha256 for entry in entries),
        captions=tuple(caption for entry in entries for caption in entry.captions),
        text_image_index=index,
        raw_image_features=torch.tensor(image, dtype=torch.float32),
        raw_text_features=torch.tensor(text, dtype=torch.float32)[: len(index)],
        logit_scale=20.0,
        tasks={TASK: task} if part.tasks else {},
    )


def count_texts(part):
    """What `Embedder.count_truncated` says of texts that all fit."""
    count = Truncation(77)
    count.add(part.num_captions, [], [])
    return {"captions": count.facts()} if part.num_captions else {}


def digest(model):
    return artifacts.sha256_bytes(model.encode())


def write_models(data, refined, parameters):
    """Folders of base, refined and teacher: manifests and history, no weights."""
    facts = {
        "source": {"kind": "demo", "image_tower": "lite0", "text_tower": "minilm", "num_images": 44},
        "preprocess": PREPROCESS,
        "license": "Apache-2.0",
        "embed_dim": WIDTH,
        "config_digest": digest("config"),
    }
    noise = np.random.default_rng(parameters["refine"]["seed"]).normal(size=8).tolist()
    rows = [
        {"step": i, "epoch": 0, "loss": 5 - i / 9, "hycd_loss": 3 - i / 9 + x / 9, "rafa_loss": 2 - x / 9}
        for i, x in enumerate(noise)
    ]
    for folder, stage, model in (
        ("base", "base", "base"),
        ("refined", "refine", refined),
        ("teacher", "cache_teacher", "base"),
    ):
        (data / folder).mkdir()
        made_with = {}
        if stage == "refine":
            (data / folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            made_with = {"parameters": {name: parameters[name] for name in ("refine", "recipes")}}
            made_with["weight_displacement"] = 0.0123
            facts = {**facts, "refined_from": digest("base")}
        artifacts.write_manifest(data / folder, stage, model={**facts, "weights_digest": digest(model)}, **made_with)


def write_part(directory, size, *, with_captions, with_task):
    """A part whose images are drawn and lie one behind the other; the first two are the same."""
    directory.mkdir(parents=True)
    entries, blob = [], b""
    for i in range(size):
        image = draw_image(max(i, 1) + size)
        entries.append(
            shards.IndexEntry(
                key=f"{i:04d}",
                member=f"{i:04d}.png",
                offset=len(blob),
                size=len(image),
                sha256=artifacts.sha256_bytes(image),
                captions=(f"thing number {i} <b>", f"object | {i}") if with_captions else (),
                labels={TASK: i % len(CLASSES)} if with_task else {},
            )
        )
        blob += image
    (directory / "00000.tar").write_bytes(blob)
    (directory / "00000.jsonl").write_text("".join(entry.line() for entry in entries))
    counts = {"num_samples": size, "num_captions": sum(len(entry.captions) for entry in entries)}
    file = {"file": "00000.tar", "index": "00000.jsonl", "sha256": artifacts.sha256_bytes(blob), "bytes": len(blob)}
    artifacts.write_manifest(
        directory,
        "shard",
        name=directory.name,
        in_place=False,
        shards=[{**file, **counts}],
        counts={"read": size + 3, "used": size, "filtered": 2, "quarantined": 1},
        tasks={TASK: {"classnames": CLASSES, "templates": ["a {}"]}} if with_task else {},
        source={"format": "scenes"},
        max_image_pixels=1_000_000,
        **counts,
    )
    return shards.read_part(directory)


def draw_image(i):
    image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 60, 40 + i % 30), fill=(2 * i % 255, 5 * i % 255, 160, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
