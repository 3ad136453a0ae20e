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

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from pipeline_lib import artifacts, config, model, provenance, runtime
from pipeline_lib.distributed import World
from pipeline_lib.errors import UserError
from pipeline_lib.evaluation import forgetting, scoring
from pipeline_lib.evaluation.embedding import EmbeddedSet, Embedder, labels
from pipeline_lib.evaluation.forgetting import Labelled
from pipeline_lib.evaluation.scoring import Block, Items, Stopwatch
from pipeline_lib.features import l2_normalize
from pipeline_lib.shards import LEARNED_FROM, TRAINING_PARTS, Part, read_part

log = logging.getLogger(__name__)
COMMON_ITEMS = ("text_image_index", ".label", ".image_index")  # per-item arrays that every variant has alike
CENTRING_SAMPLES = 4096  # pictures that the means are taken over: as much work as one evaluation set, at most
LIKE_BASE = ("preprocess", "quick_gelu", "tokenizer_digest", "config_digest")  # refinement changes weights only
FLAT_GAP = ("centroid_distance", "alignment", "uniformity", "relative_modality_gap", "linear_separability")


@dataclass
class Evaluated:
    """What the stage writes."""

    results: dict[str, Any]
    items: dict[str, Items]
    features: dict[str, dict[str, torch.Tensor]]
    seconds: dict[str, float] = field(default_factory=dict)  # by part of the work; differs from run to run


@dataclass(frozen=True)
class Inputs:
    """What a model is evaluated on."""

    sets: Sequence[Part]
    selection: Part  # choices are made on it
    training: Part | None = None  # its means centre the mean-centred variant; it trains the linear probe, with
    # `selection` to choose the strength, if both carry labels
    base_weights: Mapping[str, torch.Tensor] | None = None  # of the other end of the WiSE-FT sweep

    @property
    def all_sets(self) -> list[Part]:
        """The selection part and the sets."""
        return [self.selection, *self.sets]


def evaluate(embedder: Embedder, name: str, inputs: Inputs, settings: config.Evaluate) -> Evaluated | None:
    """Evaluate one model.

    Args:
        embedder: The model and how to run it.
        name: `base` or `refined`.
        inputs: What to evaluate on.
        settings: What to measure.

    Returns:
        `results` with {"model", "weights_digest", "sets": {set: facts and "variants": {"plain": block, "mean_centred":
        block}}, "selection": {selection part: the same, plain}, "centring": {"part", "num_images", "num_captions"},
        "linear_probe": {set: {task: {"top1", …}}},
        "wise_ft": [{"mix", "sets": {set: {headline: value}}, "metrics": {set: {name: value}}}]}, and the arrays. None
        on all processes but the first.

    Raises:
        UserError: Images cannot be read, features mean nothing, or a known answer is missed.
    """
    watch = Stopwatch()
    with watch("embed"):
        embedded = [embedder.embed(part) for part in inputs.all_sets]
    with watch("linear_probe"):
        training = _probe_training(embedder, inputs, embedded[0]) if settings.linear_probe else {}
    with watch("centring"):
        centring = _centring(embedder, inputs, embedded[0])
    with watch("wise_ft"):
        wise_ft = _wise_ft(embedder, inputs, settings)
    if not embedder.world.is_main:
        return None
    scored = _score(embedded, centring, settings, watch)
    scored.results = {"model": name, "weights_digest": embedder.clip.facts["weights_digest"], **scored.results}
    if settings.linear_probe:
        with watch("linear_probe"):
            _linear_probes(embedded[1:], training, settings, scored)
    if wise_ft:
        scored.results["wise_ft"] = wise_ft
    if name == "base":
        numbers = flat_metrics(scored.results)
        for part in inputs.all_sets:
            check_known_answers(part, numbers[part.name], embedder.clip.facts)
    scored.seconds = watch.seconds
    _log_times(name, watch.seconds)
    return scored


def _log_times(name: str, seconds: Mapping[str, float]) -> None:
    """How long each part took, the longest first."""
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    log.info("%s: time of each part: %s", name, ", ".join(f"{part} {value:.1f} s" for part, value in longest))


# ---- scores ----


def _centring(embedder: Embedder, inputs: Inputs, selection: EmbeddedSet) -> EmbeddedSet | None:
    """What the means are taken over: the training part, else the selection part; None where neither has captions."""
    if inputs.training is not None and inputs.training.num_captions:
        return embedder.embed_sample(inputs.training, CENTRING_SAMPLES)
    if selection.captions:
        return selection
    log.warning("%s has no captions, so there is no mean-centred variant", selection.name)
    return None


def _score(
    embedded: Sequence[EmbeddedSet], centring: EmbeddedSet | None, settings: config.Evaluate, watch: Stopwatch
) -> Evaluated:
    """Score the selection set (first) and the others, these also centred with the means of `centring`."""
    selection, *sets = embedded
    means = scoring.modality_means(centring) if centring else None
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
    one: EmbeddedSet, settings: config.Evaluate, means: scoring.Means | None, watch: Stopwatch
) -> tuple[Block, Items]:
    plain, items = scoring.score(one, settings, watch=watch)
    variants = {"plain": plain}
    if means is not None:
        variants["mean_centred"], centred = scoring.score(one, settings, means, watch)
        items |= {f"mean_centred.{key}": value for key, value in centred.items() if not key.endswith(COMMON_ITEMS)}
    facts = {
        "digest": one.digest,
        "num_images": one.num_images,
        "num_captions": len(one.captions),
        "duplicates": scoring.duplicates(one),
    }
    with watch("intervals"):
        return {**facts, "variants": scoring.with_intervals(variants, one.num_images, settings)}, items


def _warn_of_gaps(one: EmbeddedSet) -> None:
    if one.captions and not scoring.is_captioned(one):
        missing = one.num_images - len(one.text_image_index.unique())
        log.warning("%s: %d of %d images have no caption, so there is no retrieval", one.name, missing, one.num_images)
    for name, task in one.tasks.items():
        if len(task.rows) < one.num_images:
            missing = one.num_images - len(task.rows)
            log.warning(
                "%s: %d of %d images have no label of `%s`: not scored", one.name, missing, one.num_images, name
            )
    repeated = scoring.duplicates(one)
    if any(repeated.values()):
        log.info("%s: %d images and %d captions are repetitions", one.name, repeated["images"], repeated["captions"])


def check_known_answers(part: Part, numbers: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Compare the base model's numbers with those that the set pins for it, if it does.

    Args:
        part: The set; its manifest may hold `known_answers`, see `sources.known_answers`.
        numbers: What was measured on it, see `flat_metrics`.
        facts: Of the model.

    Raises:
        UserError: A number is farther from its known answer than the tolerance, or is not measured.
    """
    known = part.manifest.get("known_answers") or {}
    own = [(name, answer) for name, answers in known.items() for answer in answers if _is_for(answer["model"], facts)]
    for name, answer in own:
        if name not in numbers:
            raise UserError(f"{part.name}: known answers: no metric {name!r}; there are {', '.join(numbers)}")
        if not abs(numbers[name] - answer["value"]) <= answer["tolerance"]:
            raise UserError(
                f"{part.name}: the base model scores {name} {numbers[name]:.6g}, its known answer is "
                f"{answer['value']:g} ± {answer['tolerance']:g}; check weights, preprocessing, prompts and data, or "
                "mend the known answer beside the set"
            )
    if known:
        log.info("%s: %d known answers met, of %d in its file", part.name, len(own), sum(map(len, known.values())))


def _is_for(named: str | None, facts: Mapping[str, Any]) -> bool:
    """Whether a known answer is that of the model with these `facts`."""
    source = facts.get("source") or {}
    return (
        named is None
        or facts["weights_digest"].startswith(named)
        or (source.get("kind") == "open_clip" and named == f"{source['model']}/{source['pretrained']}")
    )


# ---- forgetting ----


def _probe_training(embedder: Embedder, inputs: Inputs, selection: EmbeddedSet) -> dict[str, tuple[Any, ...]]:
    """By task: class names and data to train and to validate on, where `training` and `selection` carry its labels."""
    part = inputs.training
    if part is None:
        return {}
    entries = list(part.entries())
    shared = {
        name: task
        for name, task in selection.tasks.items()
        if tuple(part.tasks.get(name, {}).get("classnames", ())) == task.classnames
        and any(name in entry.labels for entry in entries)
        and any(one.tasks.keys() >= {name} for one in inputs.sets)
    }
    if not shared:
        return {}
    images = embedder.embed_images(part)
    return {
        name: (
            task.classnames,
            _labelled(images, labels(entries, name)),
            _labelled(selection.raw_image_features, task.labels),
            [part.name, selection.name],
        )
        for name, task in shared.items()
    }


def _labelled(raw_features: torch.Tensor, labels: torch.Tensor) -> Labelled:
    """Unit features of the images that have a label, which is not −1."""
    rows = (labels >= 0).nonzero()[:, 0]
    return Labelled(l2_normalize(raw_features[rows]).numpy(), labels[rows].numpy())


def _linear_probes(
    sets: Sequence[EmbeddedSet], training: Mapping[str, tuple[Any, ...]], settings: config.Evaluate, scored: Evaluated
) -> None:
    """Add probes of every task of every set to `scored`; a set whose task has no training data is split in halves."""
    block = scored.results["linear_probe"] = {}
    for one in sets:
        for name, task in one.tasks.items():
            data = _labelled(one.raw_image_features, task.labels)
            found = training.get(name)
            if found and found[0] == task.classnames:
                _, train, validation, trained_on = found
                test = np.arange(len(data.labels))
            else:
                train, validation, test = _split(data, settings.seed)
                trained_on = [f"half of {one.name}"]
            if min(len(train.labels), len(validation.labels), len(test)) == 0 or len(np.unique(train.labels)) < 2:
                log.warning("%s: too few images per class of `%s` for a linear probe", one.name, name)
                continue
            held_out = Labelled(data.features[test], data.labels[test])
            probe = forgetting.linear_probe(train, validation, held_out, task.rows.numpy()[test])
            facts = {"trained_on": trained_on, "num_train": probe.num_train, "C": probe.strength, "num_test": len(test)}
            top1 = scoring.with_intervals({"top1": probe.top1}, one.num_images, settings)
            block.setdefault(one.name, {})[name] = {**top1, **facts}
            scored.items[one.name] |= {
                f"linear_probe.{name}.correct": probe.top1.values.astype(np.uint8),
                f"linear_probe.{name}.image_index": probe.top1.image_index,
            }


def _split(data: Labelled, seed: int) -> tuple[Labelled, Labelled, np.ndarray]:
    """A quarter to train on, a quarter to choose the strength on, and the numbers of the other half."""
    both, test = forgetting.stratified_halves(data.labels, seed)
    train, validation = (both[half] for half in forgetting.stratified_halves(data.labels[both], seed))
    return (
        Labelled(data.features[train], data.labels[train]),
        Labelled(data.features[validation], data.labels[validation]),
        test,
    )


def _wise_ft(embedder: Embedder, inputs: Inputs, settings: config.Evaluate) -> list[Block]:
    """Every set with weights between base and refined, without intervals; the ends are the two models themselves."""
    if inputs.base_weights is None or not settings.wise_ft:
        return []
    module = embedder.clip.module
    refined = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows = []
    try:
        for mix in settings.wise_ft:
            log.info("evaluating %.0f %% refined, %.0f %% base", 100 * mix, 100 * (1 - mix))
            module.load_state_dict(forgetting.interpolate(inputs.base_weights, refined, mix))
            mixed = dataclasses.replace(embedder, kept=embedder.kept and embedder.kept / f"mix_{mix:g}")
            embedded = [mixed.embed(part) for part in inputs.all_sets]
            if embedder.world.is_main:
                blocks = {one.name: scoring.score(one, settings)[0] for one in embedded}
                rows.append(
                    {
                        "mix": mix,
                        "sets": {name: scoring.headlines(block) for name, block in blocks.items()},
                        "metrics": {name: scoring.flat(block) for name, block in blocks.items()},
                    }
                )
    finally:
        module.load_state_dict(refined)
    return rows


# ---- output ----


def flat_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of a set by name, plain and (headlines and gap only) mean-centred: what DVC and MLflow compare."""
    flat = {}
    for name, one in {**results["sets"], **results["selection"]}.items():
        values = scoring.flat(one["variants"]["plain"])
        for task, probe in results.get("linear_probe", {}).get(name, {}).items():
            values[f"linear_probe_{task}_top1"] = scoring.number(probe["top1"])
        centred = one["variants"].get("mean_centred")
        if centred is not None:
            also = scoring.headlines(centred) | {k: v for k, v in centred["gap"].items() if k in FLAT_GAP}
            values |= {f"mean_centred_{key}": value for key, value in also.items()}
        flat[name] = values
    return flat


def write(evaluated: Evaluated, directory: Path, metrics_file: Path) -> str:
    """Write the folder and the metrics file; returns the digest of the folder's manifest."""
    with artifacts.output_directory(directory, "evaluate") as place:
        artifacts.write_json(place("results.json"), evaluated.results)
        for name, items in evaluated.items.items():
            artifacts.write_bytes(place(f"items/{name}.safetensors"), safetensors.numpy.save(items))
        for name, features in evaluated.features.items():
            artifacts.write_bytes(place(f"features/{name}.safetensors"), safetensors.torch.save(features))
        place(model=evaluated.results["model"], weights_digest=evaluated.results["weights_digest"])
    artifacts.write_json(metrics_file, flat_metrics(evaluated.results))
    return artifacts.read_manifest(directory)["digest"]


# ---- the whole stage ----


def build(
    name: str, paths: config.Paths, settings: config.Evaluate, how: config.Runtime, world: World
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
    kept = _work_directory(name, clip, inputs, settings, world)
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
        digest = write(evaluated, paths.eval / name, paths.eval / f"{name}.json")
    shutil.rmtree(kept)
    return {"digest": digest, "metrics": flat_metrics(evaluated.results), "seconds": evaluated.seconds}


def _work_directory(name: str, clip: model.Clip, inputs: Inputs, settings: config.Evaluate, world: World) -> Path:
    """Where finished features wait for the end of the stage; named by all that they depend on."""
    parts = [*inputs.all_sets, *([inputs.training] if inputs.training else [])]
    identity = {
        "model": [name, clip.facts],
        "parts": {part.name: part.digest for part in parts},
        "settings": [settings.batch_size, settings.prompt, settings.ensemble],
        "machine": [world.size, str(clip.device), torch.get_num_threads()],
        "code": [provenance.stage_digest("evaluate"), provenance.package_versions()],
    }
    return artifacts.work_directory("evaluate", artifacts.digest(identity))


def open_model(
    name: str, paths: config.Paths, device: torch.device
) -> tuple[model.Clip, Mapping[str, torch.Tensor] | None]:
    """The model `name`, and for the refined one the weights of the base model that it came from.

    Raises:
        UserError: A model is missing or unfinished or not what its manifest says, or the refined one came from another
            base model or has other preprocessing, activation or tokenizer.
    """
    folder, stage = {"base": (paths.base, "base"), "refined": (paths.refined, "refine")}[name]
    artifacts.read_manifest(folder, stage=stage)  # never another model in its place
    clip = model.load(folder, device=device)
    if name == "base":
        return clip, None
    base = model.load(paths.base, device=device)
    if clip.facts.get("refined_from") != base.facts["weights_digest"]:
        raise UserError(f"{folder}: was not refined from the model in {paths.base}; run `dvc repro refine`")
    differing = [key for key in LIKE_BASE if clip.facts.get(key) != base.facts.get(key)]
    if differing:
        raise UserError(
            f"{folder}: {', '.join(differing)} differ from what {paths.base} recorded, so the two cannot be compared; "
            "run `dvc repro -f refine`"
        )
    return clip, base.module.state_dict()


def open_inputs(shards: Path, settings: config.Evaluate) -> Inputs:
    """The parts and sets below `shards` that a model is evaluated on, from the manifest of the whole folder.

    Raises:
        UserError: The folder is missing or unfinished, there is nothing to evaluate on or to select on.
    """
    names = list(artifacts.read_manifest(shards, stage="shard")["parts"])
    if settings.selection in LEARNED_FROM:
        raise UserError(
            f"evaluate.selection: models are trained on `{settings.selection}`, so what is best there need not be best "
            "elsewhere; name a part that none was trained on, such as `val`"
        )
    if settings.selection not in names:
        there = ", ".join(names)
        raise UserError(f"evaluate.selection: `{settings.selection}` is not among the parts in {shards}: {there}")
    sets = [name for name in names if name not in {*LEARNED_FROM, *TRAINING_PARTS, settings.selection}]
    if not sets:
        raise UserError(
            f"{shards}: nothing to evaluate on; add a part (`eval: 0.2`) to data.parts or a set to data.evaluation"
        )
    return Inputs(
        sets=[read_part(shards / name) for name in sets],
        selection=read_part(shards / settings.selection),
        training=read_part(shards / "refine") if "refine" in names else None,
    )
