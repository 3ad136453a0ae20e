"""Evaluation by clip-benchmark against `evaluate`, on the same sets; the numbers must agree."""

from __future__ import annotations

from typing import Any

from pipeline_lib import model
from pipeline_lib.core import config, shards
from pipeline_lib.evaluate import evaluation, flat, scoring
from pipeline_lib.evaluate.embedded import modality_means
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results.folders import PLAIN
from tests.bench.inputs import Used
from tests.peers.inputs import World
from tests.peers.sides import Peer, in_this_process
from tests.peers.table import Table

Sides = tuple[list[Used], list[Used], dict[str, float], dict[str, float]]


def against_clip_benchmark(world: World, task: str, name: str) -> Sides:
    """What both cost in each round, theirs first, and their numbers."""
    settings = config.load(world.root / "params.yaml", EvaluateSettings)
    clip, part = model.load(world.paths.base), shards.read_part(world.paths.shards / name)
    arguments = (world.sizes.threads, world.weights, settings.batch_size, task, world.root / "more" / name)
    theirs, ours, found = [], [], []

    def own() -> None:
        embedder = Embedder(
            clip, settings.batch_size, prompt=settings.prompt, ensemble=settings.ensemble, progress=False
        )
        one = embedder.embed(part)
        means = modality_means(one) if one.captions else None
        found.append(evaluation._score_set(one, settings, means, scoring.Stopwatch())[0])

    with Peer("evaluation", *arguments, threads=world.sizes.threads, folder=world.root) as peer:
        for _ in range(world.sizes.rounds):
            answer = peer()
            theirs.append(Used(answer["cpu"], answer["wall"]))
            ours.append(in_this_process(own))
    return theirs, ours, answer["numbers"], _values(found[-1], name)


def _values(facts: dict[str, Any], name: str) -> dict[str, float]:
    return flat.metric_values(flat.read_measures(name, facts["variants"][PLAIN]["measures"]), {})


def retrieval(table: Table, world: World) -> None:
    """Recall at 1, 5, 10 both ways; here with the gap suite and intervals."""
    theirs, ours, expected, found = against_clip_benchmark(world, "retrieval", "retrieval")
    for k in (1, 5, 10):
        for direction, key in (("text", "image_to_text"), ("image", "text_to_image")):
            value = expected[f"{direction}_retrieval_recall@{k}"]
            assert abs(value - found[f"{key}_recall_at_{k}"]) < 1e-6, (k, key, expected, found)
    note = f"clip-benchmark, {world.sizes.images} pictures x 5 captions; same R@1, 5, 10; here also gap and intervals"
    table.compare("retrieval evaluation", 3.0, theirs, ours, note)


def zero_shot(table: Table, world: World) -> None:
    """Top-1 of an ensemble; here also of a single prompt, with intervals."""
    theirs, ours, expected, found = against_clip_benchmark(world, "classification", "classes")
    for theirs_key, key in (("acc1", "top1"), ("acc5", "top5"), ("mean_per_class_recall", "mean_per_class")):
        assert abs(expected[theirs_key] - found[f"zero_shot_class_{key}"]) < 1e-6, (key, expected, found)
    size = f"{world.sizes.labelled} pictures, 10 classes x 7 templates"
    note = f"clip-benchmark, {size}; same top-1, top-5, mean per class; here also intervals"
    table.compare("zero-shot evaluation", 1.2, theirs, ours, note)
