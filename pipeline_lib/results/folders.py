"""What evaluation folders say: every measure with its interval, and whether two models differ. No drawing, no prose.

A headline is a number that the verdict names: recall at 1 in both directions and zero-shot top-1 of the template
ensemble, of every evaluated set. Measures are means over items, so that two models are compared on the same items
(`paired`): captions stay with their image in the bootstrap and in the exact test, accuracies take McNemar's, Holm's
correction covers all headlines of one comparison. Linear probes are no headlines and are tested likewise, as a family
of their own (`paired_probes`). What is neither gets an interval and no test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.results import keys as naming
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.statistics import Interval, Mean

Array = np.ndarray[Any, Any]
Verdict = Literal["rose", "fell", "still"]
PARAMETERS = ("data", "base", "shard", "cache_teacher", "refine", "evaluate")  # sections that decide results
PLAIN, CENTRED = "plain", "mean_centred"
PROMPTS = {"single": ", 1 prompt", "imagenet": ", ImageNet's prompts"}  # beside the ensemble
SCORES = {"top1": "top-1", "mean_per_class": "class mean", "top5": "top-5"}
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def read_parameters(params_file: Path) -> dict[str, Any]:
    """The sections of params.yaml that decide results, of `recipes` the one that is used."""
    parameters = {name: config.raw_section(params_file, name) for name in PARAMETERS}
    recipe = parameters["refine"]["recipe"]
    return {**parameters, "recipes": {recipe: config.raw_section(params_file, "recipes").get(recipe)}}


def check_parameters(
    params_file: Path, parameters: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any]
) -> None:
    """Refuse parameters that are not those which made an output.

    Args:
        params_file: params.yaml, for the message.
        parameters: What `read_parameters` gave.
        folder: The output, for the message.
        manifest: That of the output.

    Raises:
        UserError: They differ; names each key with both values. Or the manifest does not tell.
    """
    if "parameters" not in manifest:
        raise UserError(
            f"{folder}: does not say which parameters made it, as an older version left it; run `dvc repro`"
        )
    made_with, now = flat(manifest["parameters"]), flat(parameters)
    found = [f"{key} is {now[key]}, was {was}" for key, was in made_with.items() if key in now and now[key] != was]
    if found:
        raise UserError(
            f"{params_file}: not what made {folder}: {'; '.join(found)}; run `dvc repro`, or put the former values back"
        )


def check_pair(params_file: Path, parameters: Mapping[str, Any], base: Evaluation, refined: Evaluation) -> None:
    """Refuse evaluations that are not of the same pictures, or not made with these parameters.

    Raises:
        UserError: See above.
    """
    for evaluation in (base, refined):
        check_parameters(params_file, parameters, evaluation.directory, evaluation.manifest)
    for name in sorted({*base.all_sets, *refined.all_sets}):
        found = [evaluation.all_sets.get(name, {}).get("digest") for evaluation in (base, refined)]
        if found[0] != found[1]:
            raise UserError(f"{base.directory} and {refined.directory}: `{name}` has other pictures; run `dvc repro`")


def check_weights(base: Evaluation, refined: Evaluation, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse evaluations that are not of the refined model in `folder` and of the base that it came from.

    Raises:
        UserError: They are of others.
    """
    facts = manifest["model"]
    for evaluation, weights in ((base, facts["refined_from"]), (refined, facts["weights_digest"])):
        if evaluation.results["weights_digest"] != weights:
            raise UserError(
                f"{evaluation.directory}: evaluated other weights than those of {folder} and its base; run `dvc repro`"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


@dataclass(frozen=True)
class Measure:
    """One number of one set: its key, how it reads, its interval, the per-item array it is the mean of."""

    set_name: str
    key: str
    label: str
    interval: Interval
    items: str = ""  # its array in items/<set>.safetensors, without the variant; empty: not kept per item
    is_headline: bool = False
    is_probe: bool = False
    group: str = ""  # array of classes, for a mean over classes

    @property
    def name(self) -> str:
        """`set: label`, as figures and sentences name it."""
        return f"{self.set_name}: {self.label}"


@dataclass(frozen=True)
class Paired:
    """One measure before and after, on the same items. Values are shares, not percent."""

    before: Measure
    after: Measure
    difference: Interval
    p_value: float | None = None  # of headlines and probes
    adjusted_p: float | None = None
    verdict: Verdict = "still"


class Evaluation:
    """One folder of the evaluate stage, `data/eval/<model>/`, arrays read when asked for."""

    def __init__(self, directory: Path) -> None:
        """Read results.json and the manifest.

        Raises:
            UserError: The folder is missing, unfinished or was written by another stage.
        """
        self.directory = directory
        self.manifest = artifacts.read_manifest(directory, stage="evaluate")
        self.results: dict[str, Any] = artifacts.read_json(directory / "results.json")
        self.items = cache(lambda name: load_file(directory / "items" / f"{name}.safetensors"))
        self.features = cache(lambda name: load_file(directory / "features" / f"{name}.safetensors"))

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """Results by evaluation set."""
        return self.results["sets"]

    @property
    def selection(self) -> dict[str, dict[str, Any]]:
        """Results of the parts on which choices are made (val)."""
        return self.results.get("selection") or {}

    @property
    def all_sets(self) -> dict[str, dict[str, Any]]:
        """Both."""
        return {**self.selection, **self.sets}

    def block(self, set_name: str, name: str, variant: str = PLAIN) -> dict[str, Any]:
        """`retrieval`, `zero_shot` or `gap` of one set; empty where it was not measured."""
        return self.all_sets[set_name]["variants"].get(variant, {}).get(name) or {}


@dataclass(frozen=True)
class Variant:
    """An evaluation as it is, or after mean-centring: what is compared."""

    evaluation: Evaluation
    name: str = PLAIN

    def measures(self, set_name: str) -> Iterator[Measure]:
        """Everything measured on a set that is a share with an interval, headlines first within their kind."""
        for one in naming.recalls(self.evaluation.block(set_name, "retrieval", self.name)):
            label, items = f"{DIRECTIONS[one.direction]} R@{one.k}", f"{one.direction}_hit_at_{one.k}"
            yield Measure(set_name, one.key, label, interval(one.leaf), items, one.is_headline)
        for one in naming.zero_shot_scores(self.evaluation.block(set_name, "zero_shot", self.name)):
            if one.score in SCORES:
                yield _accuracy(set_name, one)

    def headlines(self, set_name: str) -> list[Measure]:
        """The measures that the verdict names."""
        return [measure for measure in self.measures(set_name) if measure.is_headline]

    def probes(self, set_name: str) -> Iterator[Measure]:
        """Linear probes on a set, one per task; the features as they are."""
        for task, probe in (self.evaluation.results.get("linear_probe") or {}).get(set_name, {}).items():
            label, items = f"linear probe {task} top-1", f"linear_probe.{task}.correct"
            top1 = interval(probe["top1"])
            yield Measure(set_name, f"linear_probe_{task}_top1", label, top1, items, is_probe=True)

    def array(self, set_name: str, name: str) -> Array:
        """A per-item array of this variant."""
        items = self.evaluation.items(set_name)
        return items[name if self.name == PLAIN else f"{self.name}.{name}"]

    def mean(self, measure: Measure) -> Mean:
        """The items behind a measure: their values, the image each belongs to, and for means per class its class."""
        values = self.array(measure.set_name, measure.items).astype(np.float64)
        items = self.evaluation.items(measure.set_name)  # images and classes of items are the same in every variant
        labels = items[measure.group] if measure.group else None
        if measure.is_probe:  # may be trained on some of the images and tested on the others
            index = items[measure.items.replace("correct", "image_index")]
        elif measure.items.startswith("zero_shot"):  # some images may have no label
            index = items[f"{measure.items.rsplit('.', 2)[0]}.image_index"]
        else:
            of_captions = measure.items.startswith("text_to_image")  # they share their image's difficulty
            index = items["text_image_index"] if of_captions else np.arange(len(values))
        return Mean(values, index, labels)


def _accuracy(set_name: str, one: naming.Named) -> Measure:
    """A zero-shot score; what is compared per item are top-1 hits, of the ensemble as means per class as well."""
    has_items = one.score == "top1" or (one.score == "mean_per_class" and one.prompt == "ensemble")
    return Measure(
        set_name,
        one.key,
        f"zero-shot {one.task} {SCORES[one.score]}{PROMPTS.get(one.prompt, '')}",
        interval(one.leaf),
        f"zero_shot.{one.task}.{one.prompt}.hit_at_1" if has_items else "",
        is_headline=one.is_headline,
        group=f"zero_shot.{one.task}.label" if one.score == "mean_per_class" else "",
    )


def paired(before: Variant, after: Variant, settings: Certainty, *, sets: Sequence[str]) -> list[Paired]:
    """Every measure of `sets` that both have per item; headlines with their test, Holm's correction over all of them.

    Args:
        before: What it was.
        after: What is judged.
        settings: Confidence, bootstrap samples, seed.
        sets: Set names.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    return _pair(before, after, settings, sets, Variant.measures)


def paired_probes(before: Variant, after: Variant, settings: Certainty, *, sets: Sequence[str]) -> list[Paired]:
    """Every linear probe that both have, tested like headlines, with Holm's correction over the probes alone."""
    return _pair(before, after, settings, sets, Variant.probes)


def _pair(
    before: Variant,
    after: Variant,
    settings: Certainty,
    sets: Sequence[str],
    measures: Callable[[Variant, str], Iterator[Measure]],
) -> list[Paired]:
    alpha = 1 - settings.confidence
    rows = [row for name in sets for row in _paired_on(before, after, settings, name, measures)]
    tested = [row for row in rows if row.p_value is not None]
    adjusted = statistics.holm([row.p_value for row in tested if row.p_value is not None])
    judged = {row.before.name: _judge(row, p, alpha) for row, p in zip(tested, adjusted, strict=True)}
    return [judged.get(row.before.name, row) for row in rows]


def item_differences(before: Variant, after: Variant, measure: Measure) -> Mean:
    """After minus before on every item behind a measure, each with the image it belongs to.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    first, second = before.mean(measure), after.mean(measure)
    if len(first.values) != len(second.values):
        raise UserError(
            f"{before.evaluation.directory} and {after.evaluation.directory}: set `{measure.set_name}` has "
            f"{len(first.values)} and {len(second.values)} items; evaluate both on the same data (dvc repro)"
        )
    return first._replace(values=second.values - first.values)


def _paired_on(
    before: Variant,
    after: Variant,
    settings: Certainty,
    set_name: str,
    measures: Callable[[Variant, str], Iterator[Measure]],
) -> list[Paired]:
    others = {measure.key: measure for measure in measures(after, set_name)}
    both = [measure for measure in measures(before, set_name) if measure.items and measure.key in others]
    if not both:
        return []
    found = statistics.paired_tests(
        {measure.key: item_differences(before, after, measure) for measure in both},
        before.evaluation.all_sets[set_name]["num_images"],
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    rows = []
    for measure in both:
        test, p = found[measure.key], None
        if measure.is_headline or measure.is_probe:
            p = test.p_value if "_recall_at_" in measure.key else _mcnemar(before, after, measure)
        rows.append(Paired(measure, others[measure.key], Interval(test.difference, test.low, test.high), p))
    return rows


def _mcnemar(before: Variant, after: Variant, measure: Measure) -> float:
    name = measure.items.replace("hit_at_1", "correct")
    return statistics.mcnemar(before.array(measure.set_name, name), after.array(measure.set_name, name))


def _judge(row: Paired, adjusted_p: float, alpha: float) -> Paired:
    return replace(row, adjusted_p=adjusted_p, verdict=moved(row.difference, adjusted_p, alpha))


def moved(difference: Interval, adjusted_p: float, alpha: float) -> Verdict:
    """Whether a number rose, fell or stands still, as far as one can tell at the level `alpha`."""
    if adjusted_p >= alpha:
        return "still"
    return "rose" if difference.value > 0 else "fell"


def interval(block: Mapping[str, float]) -> Interval:
    """results.json's {"value", "low", "high"}."""
    return Interval(block["value"], block["low"], block["high"])


# ---- the modality gap ----


@dataclass(frozen=True)
class Gap:
    """Centroid distances on one set, and their changes without noise (`statistics.distance_change`)."""

    set_name: str
    base: float
    refined: float
    free: float | None  # of the base, mean-centred; None where it was not measured
    floor: float  # what two samples of one distribution would have, of the refined model's spread
    change: Interval  # refined minus base
    against_free: Interval | None  # refined minus mean-centred


def gap(base: Evaluation, refined: Evaluation, set_name: str, settings: Certainty) -> Gap | None:
    """The gap on a set, on the same pairs; None where it was not measured.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    variants = (Variant(base), Variant(refined), Variant(base, CENTRED))
    blocks = [v.evaluation.block(set_name, "gap", v.name) for v in variants]
    distances = [block.get("centroid_distance") for block in blocks]
    if distances[0] is None or distances[1] is None:
        return None

    def against(before: tuple[Array, Array]) -> Interval:
        after = first_pairs(refined, set_name)
        if len(before[0]) != len(after[0]):
            raise UserError(f"{base.directory} and {refined.directory}: `{set_name}` has other pairs; dvc repro")
        return statistics.distance_change(
            before[0] - before[1],
            after[0] - after[1],
            num_samples=settings.bootstrap_samples,
            confidence=settings.confidence,
            seed=settings.seed,
        )

    centred = centred_pairs(base, set_name) if distances[2] is not None else None
    return Gap(
        set_name,
        base=distances[0],
        refined=distances[1],
        free=distances[2],
        floor=blocks[1]["centroid_floor"],
        change=against(first_pairs(base, set_name)),
        against_free=against(centred) if centred else None,
    )


def first_pairs(evaluation: Evaluation, set_name: str) -> tuple[Array, Array]:
    """Unit features of every picture that has a caption, and of its first one: [P, D] and [P, D]."""
    features = evaluation.features(set_name)
    rows, captions = np.unique(features["text_image_index"], return_index=True)
    return unit(features["raw_image_features"][rows]), unit(features["raw_text_features"][captions])


def centred_pairs(evaluation: Evaluation, set_name: str) -> tuple[Array, Array] | None:
    """`first_pairs` less each modality's mean on other pictures; None where there is no mean-centred variant."""
    features = evaluation.features(set_name)
    if "text_mean" not in features:
        return None
    image, text = first_pairs(evaluation, set_name)
    return unit(image - features["image_mean"]), unit(text - features["text_mean"])


def unit(rows: Array) -> Array:
    """Rows divided by their norm."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---- between base and refined ----

# mix, change of mean zero-shot top-1, change of mean recall at 1, in points; None: not among the headlines
Curve = list[tuple[float, float | None, float | None]]


def wise_curve(base: Evaluation, refined: Evaluation, sets: Sequence[str]) -> Curve:
    """The WiSE-FT sweep on `sets` against the base, both ends included, by mix.

    Empty where there is no sweep, or `sets` have no headlines.
    """
    models: dict[float, dict[str, dict[str, float]]] = {
        mix: {name: {m.key: m.interval.value for m in Variant(e).headlines(name)} for name in sets}
        for mix, e in ((0.0, base), (1.0, refined))
    }
    models |= {float(row["mix"]): row["sets"] for row in refined.results.get("wise_ft") or []}
    curve: Curve = []
    for mix, scores in sorted(models.items()):
        changes = [
            (key.startswith("zero_shot"), 100 * (scores[name][key] - value))
            for name, keys in models[0.0].items()
            for key, value in keys.items()
        ]
        kinds = ([change for is_zero, change in changes if is_zero == kind] for kind in (True, False))
        zero_shot, retrieval = (float(np.mean(of_kind)) if of_kind else None for of_kind in kinds)
        if zero_shot is None and retrieval is None:
            return []
        curve.append((mix, zero_shot, retrieval))
    return curve if len(curve) > 2 else []


def best_mix(curve: Curve) -> float:
    """The mix with the largest mean of the changes that were measured; the one nearest to base among equals."""
    return max(curve, key=lambda point: (round(sum(x for x in point[1:] if x is not None), 9), -point[0]))[0]
