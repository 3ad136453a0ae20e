"""One model on every set: embed, score, probe, interpolate.

Two parts serve the others. The selection part is scored like a set under `selection`: recipes, weights and mixes are to
be chosen there, and the other sets looked at once. The training part lends its means to the mean-centred variant: it is
never evaluated, and large, so that the means carry little noise of their own (of a very large one a fixed sample).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline_lib.core.truncation import describe_truncation
from pipeline_lib.evaluate import calibration, class_groups, few_shot, known_answers, probes, scoring, wise_ft
from pipeline_lib.evaluate.embedded import EmbeddedSet, Means, modality_means
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.flat import flat_metrics, read_measures
from pipeline_lib.evaluate.inputs import EvaluationInputs
from pipeline_lib.evaluate.measured import Block, Items, Measured, with_intervals
from pipeline_lib.evaluate.scoring import Stopwatch
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results.folders import CENTRED, PLAIN, array_name
from pipeline_lib.results.measure import FORMAT

log = logging.getLogger(__name__)
CENTRING_SAMPLES = 512  # images that the means are taken over: their noise is a twentieth of the features' spread


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
    for one in sets:
        found = calibration.recalibrated(one, selection, seed=settings.seed, base_scale=inputs.base_scale)
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
        measures = read_measures(part.name, results[part.name]["variants"][PLAIN]["measures"])
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
