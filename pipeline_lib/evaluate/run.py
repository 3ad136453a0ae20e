"""The whole stage: a model and its sets are opened, evaluated and written to data/eval/<model>/.

results.json                 facts and numbers with intervals, see `evaluation`
items/<set>.safetensors      per-item arrays, from which two models are compared on the same items
features/<set>.safetensors   raw features, each caption's image and the means that centre: what the report draws
../<model>.json              the flat numbers, a DVC metrics file
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts, provenance, runtime, work_folders
from pipeline_lib.core.distributed import World
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.evaluation import Evaluated, evaluate
from pipeline_lib.evaluate.flat import flat_metrics
from pipeline_lib.evaluate.inputs import EvaluationInputs, open_inputs, open_model
from pipeline_lib.evaluate.scoring import Stopwatch
from pipeline_lib.evaluate.settings import EvaluateSettings


def run(
    name: str, paths: Paths, settings: EvaluateSettings, how: RuntimeSettings, world: World
) -> dict[str, Any] | None:
    """Load a model and its sets, evaluate, and write `paths.eval`/<name>.

    Args:
        name: `base` or `refined`.
        paths: Where things are.
        settings: What to measure.
        how: Device, decoding processes, progress.
        world: The processes that share the embedding.

    Returns:
        `digest` of what was written, `metrics` {set: {name: number}}, `seconds`; None on all processes but the first.

    Raises:
        UserError: The model or the shards are missing, or see `evaluation.evaluate`.
    """
    clip, base_weights, base_scale = open_model(name, paths, runtime.pick_device(how.device))
    inputs = dataclasses.replace(open_inputs(paths.shards, settings), base_weights=base_weights, base_scale=base_scale)
    kept = _work_directory(name, clip, inputs, settings, world, paths.eval / name)
    if world.is_main:
        num_rows = sum(part.num_samples + part.num_captions for part in inputs.all_sets)
        work_folders.check_room(kept, 4 * num_rows * clip.embed_dim - work_folders.bytes_in(kept))
    embedder = Embedder(
        clip=clip,
        batch_size=settings.batch_size,
        prompt=settings.prompt,
        ensemble=settings.ensemble,
        num_workers=how.num_workers,
        progress=how.progress,
        world=world,
        kept=kept,
    )
    evaluated = evaluate(embedder, name, inputs, settings)
    if evaluated is None:
        return None
    with Stopwatch(evaluated.seconds)("write"):
        digest = write_evaluation(evaluated, settings, paths.eval / name, paths.eval / f"{name}.json")
    shutil.rmtree(kept)
    return {"digest": digest, "metrics": flat_metrics(evaluated.results), "seconds": evaluated.seconds}


def write_evaluation(evaluated: Evaluated, settings: EvaluateSettings, directory: Path, metrics_file: Path) -> str:
    """Write the folder and the metrics file, and return the digest of the folder's manifest."""
    with artifacts.output_directory(directory, "evaluate") as place:
        artifacts.write_json(place("results.json"), evaluated.results)
        for name, items in evaluated.items.items():
            artifacts.write_bytes(place(f"items/{name}.safetensors"), safetensors.numpy.save(items))
        for name, features in evaluated.features.items():
            artifacts.write_bytes(place(f"features/{name}.safetensors"), safetensors.torch.save(features))
        place(model=evaluated.results["model"], weights_digest=evaluated.results["weights_digest"])
        place(parameters={"evaluate": dataclasses.asdict(settings)})
    artifacts.write_json(metrics_file, flat_metrics(evaluated.results))
    return artifacts.read_manifest(directory)["digest"]


def _work_directory(
    name: str, clip: model.Clip, inputs: EvaluationInputs, settings: EvaluateSettings, world: World, target: Path
) -> Path:
    """Return where finished features wait for the end of the stage; named by all that they depend on."""
    parts = [*inputs.all_sets, *([inputs.training] if inputs.training else [])]
    identity = {
        "model": [name, clip.facts],
        "parts": {part.name: part.digest for part in parts},
        "settings": [settings.batch_size, settings.prompt, settings.ensemble],
        "machine": [world.size, clip.device.type, torch.get_num_threads()],
        "code": [provenance.stage_digest("evaluate"), provenance.package_versions()],
    }
    return work_folders.work_directory("evaluate", world.first_of(artifacts.digest(identity)), target)
