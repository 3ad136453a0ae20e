"""One model on every set: embed, score, probe, interpolate; and what is written to data/eval/<model>/.

    results.json                 facts and numbers with intervals, see `evaluate`
    items/<set>.safetensors      per-item arrays, from which two models are compared on the same items
    features/<set>.safetensors   raw features, each caption's image and the means that centre: what the report draws
    ../<model>.json              the flat numbers, a DVC metrics file

Two parts serve the others. The selection part is scored like a set under `selection`: recipes, weights and mixes are to
be chosen there, and the other sets looked at once. The training part lends its means to the mean-centred variant: it is
never evaluated, and large, so that the means carry little noise of their own (of a very large one a fixed sample).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from pipeline_lib.core.truncation import describe_truncation
from pipeline_lib.evaluate import calibration, class_groups, few_shot, known_answers, probes, scoring, wise_ft
from pipeline_lib.evaluate.embedded import EmbeddedSet, Means, modality_means
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.inputs import EvaluationInputs, open_inputs, open_model
from pipeline_lib.evaluate.measured import Block, Items, Measured, headline_values, metric_values, with_intervals
from pipeline_lib.evaluate.scoring import Stopwatch
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results.folders import CENTRED, PLAIN, array_name
from pipeline_lib.results.measure import FORMAT, Measure

log = logging.getLogger(__name__)
CENTRING_SAMPLES = 512  # images that the means are taken over: their noise is a twentieth of the features' spread
FLAT_GAP = ("centroid_distance", "alignment", "uniformity", "relative_modality_gap", "linear_separability")


@dataclass
class Evaluated:
    """What the stage writes."""

    results: dict[str, Any]
    items: dict[str, Items]
    features: dict[str, dict[str, torch.Tensor]]
    seconds: dict[str, float] = field(default_factory=dict)  # by part of the work; differs from run to run


def evaluate(embedder: Embedder, name: str, inputs: EvaluationInputs, settings: EvaluateSettings) -> Evaluated | None:
    """Evaluate one model.

    Args:
        embedder: The model and how to run it.
        name: `base` or `refined`.
        inputs: What to evaluate on.
        settings: What to measure.

    Returns:
        `results` with {"format", "model", "weights_digest", "sets": {set: facts, "variants": {"plain": block,
        "mean_centred": block}, "truncated": see `Embedder.count_truncated`}, "selection": {selection part: the same,
        plain}, "centring": {"part", "num_images", "num_captions"}, "linear_probe": {set: {task: {"measure", …}}},
        "few_shot": {set: {task: {"measures", …}}}, "class_groups": {set: {task: {"rare", "counts"}}},
        "wise_ft": [{"mix", "sets": {set: {headline: value}}, "metrics": {set: {name: value}}}],
        "known_answers": {"met", "missed": rows of `known_answers.check_known_answers`}}, and the arrays. None on all
        processes but the first.

    Raises:
        UserError: Images cannot be read, features mean nothing, or a known answer beside a set is missed.
    """
    watch = Stopwatch()
    with watch("embed"):
        embedded = [embedder.embed(part) for part in inputs.all_sets]
    with watch("linear_probe"):
        learns = settings.linear_probe or settings.shots
        training = probes.training_data(embedder, inputs, embedded[0]) if learns else {}
    with watch("centring"):
        centring = _centring(embedder, inputs, embedded[0])
    with watch("wise_ft"):
        mixes = wise_ft.sweep(embedder, inputs, settings)
    if not embedder.world.is_main:
        return None
    scored = _score(embedded, centring, settings, watch)
    weights = embedder.clip.facts["weights_digest"]
    scored.results = {"format": FORMAT, "model": name, "weights_digest": weights, **scored.results}
    with watch("truncation"):
        _add_truncated(scored, embedder, inputs)
    with watch("calibration"):
        _add_recalibrated(scored, embedded, inputs, settings)
    with watch("class_groups"):
        _add_class_groups(scored, embedded[1:], inputs, settings)
    if settings.linear_probe:
        with watch("linear_probe"):
            _add_items(scored, "linear_probe", probes.probe_sets(embedded[1:], training, settings))
    if settings.shots:
        with watch("few_shot"):
            _add_items(scored, "few_shot", few_shot.few_shot_sets(embedded[1:], training, settings))
    if mixes:
        scored.results["wise_ft"] = mixes
    if name == "base":
        _check_known_answers(scored, inputs, embedder.clip.facts, settings)
    scored.seconds = watch.seconds
    _log_times(name, watch.seconds)
    return scored


def _add_items(scored: Evaluated, name: str, found: tuple[Block, Mapping[str, Items]]) -> None:
    """Add a block of results, and its per-item arrays by set."""
    scored.results[name], items = found
    for set_name, arrays in items.items():
        scored.items[set_name] |= arrays


def _add_measures(
    scored: Evaluated, one: EmbeddedSet, measured: Sequence[Measured], settings: EvaluateSettings
) -> None:
    """Add measures to those of a set as it is, with intervals from the same resamples."""
    stored = with_intervals(list(measured), one.num_images, settings)
    scored.results["sets"][one.name]["variants"][PLAIN]["measures"] += stored


def _add_recalibrated(
    scored: Evaluated, embedded: Sequence[EmbeddedSet], inputs: EvaluationInputs, settings: EvaluateSettings
) -> None:
    selection, *sets = embedded
    base_scale = inputs.base_weights["logit_scale"].exp().item() if inputs.base_weights else None
    for one in sets:
        found = calibration.recalibrated(one, selection, seed=settings.seed, base_scale=base_scale)
        _add_measures(scored, one, found, settings)


def _add_class_groups(
    scored: Evaluated, sets: Sequence[EmbeddedSet], inputs: EvaluationInputs, settings: EvaluateSettings
) -> None:
    counts_of = class_groups.group_classes(sets, inputs.training)
    scored.results["class_groups"] = {}
    for one in sets:
        measured, items, facts = class_groups.grouped(one, scored.items[one.name], counts_of)
        _add_measures(scored, one, measured, settings)
        scored.items[one.name] |= items
        scored.results["class_groups"] |= {one.name: facts} if facts else {}


def _add_truncated(scored: Evaluated, embedder: Embedder, inputs: EvaluationInputs) -> None:
    """Add to each set how many of its texts are longer than the model reads, and log where some are."""
    results = {**scored.results["selection"], **scored.results["sets"]}
    for part in inputs.all_sets:
        results[part.name]["truncated"] = found = embedder.count_truncated(part)
        for kind, facts in found.items():
            if facts["num_truncated"]:
                log.warning("%s", describe_truncation(f"{kind} of {part.name}", facts))


def _check_known_answers(
    scored: Evaluated, inputs: EvaluationInputs, facts: Mapping[str, Any], settings: EvaluateSettings
) -> None:
    numbers, results = flat_metrics(scored.results), {**scored.results["selection"], **scored.results["sets"]}
    rows = []
    for part in inputs.all_sets:
        measures = _read(part.name, results[part.name]["variants"][PLAIN]["measures"])
        prompts = known_answers.prompts_by_metric(part, measures, settings)
        rows += known_answers.check_known_answers(part, numbers[part.name], prompts, facts)
    if rows:
        scored.results["known_answers"] = {
            name: [{key: value for key, value in row.items() if key != "met"} for row in rows if row["met"] is met]
            for name, met in (("met", True), ("missed", False))
        }


def _log_times(name: str, seconds: Mapping[str, float]) -> None:
    """Log how long each part took, the longest first."""
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    log.info("%s: time of each part: %s", name, ", ".join(f"{part} {value:.1f} s" for part, value in longest))


# ---- scores ----


def _centring(embedder: Embedder, inputs: EvaluationInputs, selection: EmbeddedSet) -> EmbeddedSet | None:
    """Embed what the means are taken over: the training part, else the selection part; None without captions."""
    if inputs.training is not None and inputs.training.num_captions:
        return embedder.embed_sample(inputs.training, CENTRING_SAMPLES)
    if selection.captions:
        return selection
    log.warning("%s has no captions, so there is no mean-centred variant", selection.name)
    return None


def _score(
    embedded: Sequence[EmbeddedSet], centring: EmbeddedSet | None, settings: EvaluateSettings, watch: Stopwatch
) -> Evaluated:
    """Score the selection set (first) and the others, these also centred with the means of `centring`."""
    selection, *sets = embedded
    means = modality_means(centring) if centring else None
    found = Evaluated({"sets": {}, "selection": {}}, {}, {})
    if centring:
        counts = {"num_images": centring.num_images, "num_captions": len(centring.captions)}
        found.results["centring"] = {"part": centring.name, **counts}
    for one in embedded:
        _warn_of_gaps(one)
        group = "selection" if one is selection else "sets"
        centre = None if one is selection else means
        found.results[group][one.name], found.items[one.name] = _score_set(one, settings, centre, watch)
    for one in sets:
        found.features[one.name] = {
            "raw_image_features": one.raw_image_features,
            "raw_text_features": one.raw_text_features,
            "text_image_index": one.text_image_index,
            **({} if means is None else {"image_mean": means.image, "text_mean": means.text}),
        }
    return found


def _score_set(
    one: EmbeddedSet, settings: EvaluateSettings, means: Means | None, watch: Stopwatch
) -> tuple[Block, Items]:
    variants: dict[str, Block] = {}
    items = scoring.common_items(one)
    for variant, centre in ((PLAIN, None), *([(CENTRED, means)] if means is not None else [])):
        variants[variant], found = scoring.score(one, settings, centre, watch)
        items |= {array_name(name, variant): array for name, array in found.items()}
    facts = {
        "digest": one.digest,
        "num_images": one.num_images,
        "num_captions": len(one.captions),
        "duplicates": one.duplicates,
        **({"num_choices": len(one.choices.choices)} if one.choices else {}),
    }
    with watch("intervals"):
        return {**facts, "variants": with_intervals(variants, one.num_images, settings)}, items


def _warn_of_gaps(one: EmbeddedSet) -> None:
    if one.captions and not one.is_captioned:
        missing = one.num_images - len(one.text_image_index.unique())
        log.warning("%s: %d of %d images have no caption, so there is no retrieval", one.name, missing, one.num_images)
    single = int((torch.bincount(one.text_image_index) == 1).sum())
    if one.is_captioned and 0 < single < one.num_images:
        log.info("%s: %d of %d images have one caption: no query among captions", one.name, single, one.num_images)
    for name, task in one.tasks.items():
        if len(task.rows) < one.num_images:
            missing = one.num_images - len(task.rows)
            log.warning(
                "%s: %d of %d images have no label of `%s`: not scored", one.name, missing, one.num_images, name
            )
    repeated = one.duplicates
    if any(repeated.values()):
        log.info("%s: %d images and %d captions are repetitions", one.name, repeated["images"], repeated["captions"])


# ---- output ----


def flat_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of every set by name, plain and (headlines and gap only) mean-centred: DVC's and MLflow's.

    Args:
        results: See `evaluate`.
    """
    numbers = {}
    for name, one in {**results["sets"], **results["selection"]}.items():
        plain, centred = one["variants"][PLAIN], one["variants"].get(CENTRED)
        values = metric_values(_read(name, plain["measures"]), plain["gap"])
        probes_of_set = results.get("linear_probe", {}).get(name, {}).values()
        curves_of_set = results.get("few_shot", {}).get(name, {}).values()
        learned = [probe["measure"] for probe in probes_of_set]
        learned += [point for curves in curves_of_set for point in curves["measures"]]
        values |= metric_values(_read(name, learned), {})
        if centred is not None:
            also = headline_values(_read(name, centred["measures"]))
            also |= {key: value for key, value in centred["gap"].items() if key in FLAT_GAP}
            values |= {f"{CENTRED}_{key}": value for key, value in also.items()}
        numbers[name] = values
    return numbers


def _read(set_name: str, stored: Sequence[Mapping[str, Any]]) -> list[Measure]:
    return [Measure.read(set_name, one) for one in stored]


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


# ---- the whole stage ----


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
        UserError: The model or the shards are missing, or see `evaluate`.
    """
    clip, base_weights = open_model(name, paths, runtime.pick_device(how.device))
    inputs = dataclasses.replace(open_inputs(paths.shards, settings), base_weights=base_weights)
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
