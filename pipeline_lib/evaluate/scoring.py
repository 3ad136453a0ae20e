"""What an embedded set scores: retrieval, zero-shot, choices and the modality gap, as the model is and centred.

Pure functions of an `EmbeddedSet`. A block of results is a nested dict in which a `Measured` is a measure beside the
items that it is the mean of; `with_intervals` replaces each by what results.json stores, in one pass over the
resamples. Beside the blocks come the per-item arrays, from which two models are compared on the same items.

A new measure is one `Measured` more, here or in `probes`. What it is (see `Measure`) decides where it goes from there:
tables, figures, tests and metrics read its attributes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate import choices
from pipeline_lib.evaluate.embedding import EmbeddedSet
from pipeline_lib.evaluate.measured import Measured
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.metrics import Ranks
from pipeline_lib.results.measure import DIRECTIONS, Measure, Unit
from pipeline_lib.results.statistics import Mean

Block = dict[str, Any]
Items = dict[str, np.ndarray]
MIN_PAIRS = 6  # of the gap suite: ten neighbours need eleven points
SCORES = {"top1": "top-1", "mean_per_class": "class mean", "top5": "top-5"}  # of zero-shot, and how each reads
UNITS: dict[str, Unit] = {"image_to_text": "image", "text_to_image": "caption"}  # what is searched with
PROMPTS = {"ensemble": "", "single": ", 1 prompt", "imagenet": ", ImageNet's prompts"}


@dataclass
class Stopwatch:
    """Seconds by part of the work. They differ from run to run, so they go to the log and the tracker only."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


class Means(NamedTuple):
    """Mean direction of each modality on the samples that centre others, [D]."""

    image: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class Directions:
    """The features of a set in one variant: as they are, or centred with the means of another set.

    Only their directions count: every metric normalises, so that no normalised copy of a large set is kept here.
    """

    image: torch.Tensor  # [N, D]
    text: torch.Tensor  # [M, D]
    means: Means | None

    @classmethod
    def of(cls, embedded: EmbeddedSet, means: Means | None) -> Directions:
        """Take the features of `embedded`, centred if there are `means`."""
        image, text = embedded.raw_image_features, embedded.raw_text_features
        if means is not None:
            image = metrics.mean_centre(image, means.image)
        return cls(image, _centred_texts(text, means), means)

    def texts(self, raw_text_features: torch.Tensor) -> torch.Tensor:
        """Return other texts [T, D], centred like captions."""
        return _centred_texts(raw_text_features, self.means)

    def classes(self, raw_prompt_features: torch.Tensor) -> torch.Tensor:
        """Return class directions [K, D] from prompts [K, P, D], centred like captions."""
        prompts = self.texts(raw_prompt_features.flatten(0, 1)).reshape(raw_prompt_features.shape)
        return metrics.class_embeddings(prompts)


def _centred_texts(raw_text_features: torch.Tensor, means: Means | None) -> torch.Tensor:
    if means is None or not len(raw_text_features):
        return raw_text_features
    return metrics.mean_centre(raw_text_features, means.text)


def modality_means(centring: EmbeddedSet) -> Means:
    """Return the means over the images and the captions of a set that has some."""
    return Means(metrics.modality_mean(centring.raw_image_features), metrics.modality_mean(centring.raw_text_features))


def score(
    embedded: EmbeddedSet, settings: EvaluateSettings, means: Means | None = None, watch: Stopwatch | None = None
) -> tuple[Block, Items]:
    """Score a set in one variant.

    Args:
        embedded: The set.
        settings: Places of recall, seed of the separability's halves.
        means: Centre with these; None: the features as they are.
        watch: Times each part.

    Returns:
        The block and the variant's per-item arrays. The block holds `measures` (a list of `Measured`), `gap`, and where
        the set has something for it `retrieval_distinct` (retrieval without repetitions) and `classes` (by task:
        accuracy of each class, confusions).
    """
    watch = watch or Stopwatch()
    directions = Directions.of(embedded, means)
    block: Block = {"measures": []}
    items: Items = {}
    if is_captioned(embedded):
        with watch("retrieval"):
            block["measures"], items = retrieval(directions, embedded, settings.recall_at)
        if sum(duplicates(embedded).values()):
            with watch("retrieval_distinct"):
                block["retrieval_distinct"] = _retrieval_distinct(directions, embedded, settings.recall_at)
    if embedded.tasks:
        with watch("zero_shot"):
            block["classes"] = {}
            for name in embedded.tasks:
                measured, block["classes"][name], of_task = zero_shot(directions, embedded, name)
                block["measures"] += measured
                items |= of_task
    if embedded.choices:
        with watch("choices"):
            texts = directions.texts(embedded.choices.raw_text_features)
            measured, of_choices = choices.score_choices(embedded.name, embedded.choices, directions.image, texts)
            block["measures"] += measured
            items |= of_choices
    with watch("gap"):
        block["gap"] = _gap(directions, embedded, settings.seed)
    return block, items


def common_items(embedded: EmbeddedSet) -> Items:
    """Return the arrays that every variant has alike: the image of each caption, label and choice, and its content."""
    items: Items = {"image_unit": image_units(embedded)}
    if is_captioned(embedded):
        items["text_image_index"] = embedded.text_image_index.numpy()
    for name, task in embedded.tasks.items():
        items[f"zero_shot.{name}.label"] = task.labels[task.rows].numpy()
        items[f"zero_shot.{name}.image_index"] = task.rows.numpy()
    return items | (choices.common_items(embedded.choices) if embedded.choices else {})


def image_units(embedded: EmbeddedSet) -> np.ndarray:
    """Return for each image the row of the first one of its content: [N] int64. Intervals and tests take it as one."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(sha256, row) for row, sha256 in enumerate(embedded.image_hashes)], dtype=np.int64)


def is_captioned(embedded: EmbeddedSet) -> bool:
    """Return whether every image has a caption, so that the set can be searched."""
    return len(embedded.text_image_index.unique()) == embedded.num_images


def duplicates(embedded: EmbeddedSet) -> dict[str, int]:
    """Count the images and captions that repeat an earlier one of the set, by content."""
    return {
        "images": len(embedded.image_hashes) - len(set(embedded.image_hashes)),
        "captions": len(embedded.captions) - len(set(embedded.captions)),
    }


# ---- retrieval ----


class Queries(NamedTuple):
    """What a set is searched with: the captions' images as rows, and the image that each query is resampled with."""

    text_image_index: torch.Tensor  # [M] int64
    units: dict[str, np.ndarray]  # direction -> [queries] int64

    @classmethod
    def of(cls, text_image_index: torch.Tensor, image_unit: np.ndarray) -> Queries:
        """Make the queries of both directions from the unit of each image [N]."""
        return cls(
            text_image_index,
            {"image_to_text": image_unit, "text_to_image": image_unit[text_image_index.numpy()]},
        )


def retrieval(directions: Directions, embedded: EmbeddedSet, ks: Sequence[int]) -> tuple[list[Measured], Items]:
    """Return the measures of both directions of retrieval, the headline of each first, and their per-item arrays."""
    queries = Queries.of(embedded.text_image_index, image_units(embedded))
    return _retrieval(embedded.name, directions, queries, ks)


def _retrieval(
    set_name: str, directions: Directions, queries: Queries, ks: Sequence[int]
) -> tuple[list[Measured], Items]:
    both = metrics.retrieval_ranks(directions.image, directions.text, queries.text_image_index)
    by_lot = _ranks_by_lot(queries.text_image_index, len(directions.image))
    measured: list[Measured] = []
    items: Items = {}
    for (direction, unit), ranks, lot in zip(queries.units.items(), both, by_lot, strict=True):
        candidates = {"image_to_text": len(directions.text), "text_to_image": len(directions.image)}[direction]
        scores, chance = (one.log_rank_score(candidates) for one in (ranks, lot))
        measured.append(_log_rank(set_name, direction, Mean(scores.numpy(), unit), chance.mean().item()))
        items[measured[-1].measure.items] = scores.numpy()
        for k in sorted({1, *ks}):
            hits = ranks.hit_at(k).numpy()
            measured.append(_recall(set_name, direction, k, Mean(hits, unit), lot.hit_at(k).mean().item()))
            items[measured[-1].measure.items] = hits.astype(np.float32)
        places = ranks.expected().numpy()
        measured.append(_rank(set_name, direction, "median", float(np.median(places))))
        measured.append(_rank(set_name, direction, "geometric mean", ranks.log_place().mean().exp().item()))
        items[f"{direction}_rank"] = places.astype(np.float32)
    return measured, items


def _ranks_by_lot(text_image_index: torch.Tensor, num_images: int) -> tuple[Ranks, Ranks]:
    """Return the ranks of a model that says the same of everything, image to text and text to image."""
    own = torch.bincount(text_image_index, minlength=num_images)
    captions = torch.ones_like(text_image_index)
    return (
        Ranks(torch.zeros_like(own), torch.full_like(own, len(captions)), own),
        Ranks(torch.zeros_like(captions), num_images * captions, captions),
    )


def _log_rank(set_name: str, direction: str, mean: Mean, chance: float) -> Measured:
    """Return the mean log-rank score, the headline: it sees most, as `python -m pipeline_lib.calibrate` shows.

    It counts as risen only where R@1 did not fall with it: it weighs far places as well, which few look at.
    """
    measure = Measure(
        set_name,
        key=f"{direction}_log_rank",
        label=f"{DIRECTIONS[direction]} log rank",
        kind="log_rank",
        value=mean.value,
        is_headline=True,
        is_tested=True,
        chance=chance,
        not_against=_recall_key(direction, 1),
        unit=UNITS[direction],
        items=f"{direction}_log_rank",
        direction=direction,
    )
    return Measured(measure, mean)


def _recall(set_name: str, direction: str, k: int, mean: Mean, chance: float) -> Measured:
    """Return recall at k, with an interval and no test: of a small set it is too coarse to see much by."""
    measure = Measure(
        set_name,
        key=_recall_key(direction, k),
        label=f"{DIRECTIONS[direction]} R@{k}",
        kind="recall",
        value=mean.value,
        chance=chance,
        unit=UNITS[direction],
        items=f"{direction}_hit_at_{k}",
        direction=direction,
        k=k,
    )
    return Measured(measure, mean)


def _recall_key(direction: str, k: int) -> str:
    return f"{direction}_recall_at_{k}"


def _rank(set_name: str, direction: str, average: str, value: float) -> Measured:
    key, label = f"{direction}_{average.replace(' ', '_')}_rank", f"{DIRECTIONS[direction]} {average} rank"
    return Measured(
        Measure(set_name, key, label, "rank", value, is_share=False, unit=UNITS[direction], direction=direction)
    )


def _retrieval_distinct(directions: Directions, embedded: EmbeddedSet, ks: Sequence[int]) -> Block:
    """Return retrieval without repeated images and captions, on the set's own image numbers for the resampling."""
    images, texts = distinct_rows(embedded)
    index = torch.searchsorted(images, embedded.text_image_index[texts])
    subset = Directions(directions.image[images], directions.text[texts], directions.means)
    measured, _ = _retrieval(embedded.name, subset, Queries.of(index, images.numpy()), ks)
    return {
        "num_images": len(images),
        "num_captions": len(texts),
        "measures": [_beside(one) for one in measured],
    }


def _beside(one: Measured) -> Measured:
    """Return a measure of some of the images, shown beside that of all: no headline, no metric, not compared."""
    key, label = f"distinct_{one.measure.key}", f"{one.measure.label} without repetitions"
    measure = replace(one.measure, key=key, label=label, is_headline=False, is_metric=False, is_tested=False, items="")
    return Measured(measure, one.mean)


def distinct_rows(embedded: EmbeddedSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of the images and captions that remain when repetitions go: the first of each stays.

    A repeated image goes with its captions; an image whose captions all repeat earlier ones goes as well.
    """
    first_image: dict[str, int] = {}
    for row, sha256 in enumerate(embedded.image_hashes):
        first_image.setdefault(sha256, row)
    kept_images = set(first_image.values())
    first_text: dict[str, int] = {}
    for row, (caption, image) in enumerate(zip(embedded.captions, embedded.text_image_index.tolist(), strict=True)):
        if image in kept_images:
            first_text.setdefault(caption, row)
    texts = torch.tensor(list(first_text.values()), dtype=torch.int64)
    return embedded.text_image_index[texts].unique(), texts


# ---- zero-shot ----


def zero_shot(directions: Directions, embedded: EmbeddedSet, name: str) -> tuple[list[Measured], Block, Items]:
    """Return the measures of a task, the ensemble's first; its accuracy by class; its per-item arrays."""
    task = embedded.tasks[name]
    labels, image_index = task.labels[task.rows], image_units(embedded)[task.rows.numpy()]
    image = directions.image if len(task.rows) == len(task.labels) else directions.image[task.rows]
    measured: list[Measured] = []
    classes: Block = {}
    items: Items = {}
    for prompt in sorted(task.raw_prompt_features):
        found = metrics.classify(
            image, directions.classes(task.raw_prompt_features[prompt]), labels, embedded.logit_scale
        )
        hits = found.ranks.hit_at(1)
        means = {
            "top1": Mean(hits.numpy(), image_index),
            "mean_per_class": Mean(hits.numpy(), image_index, labels.numpy()),
            "top5": Mean(found.ranks.hit_at(5).numpy(), image_index),
        }
        without = without_a_model(labels, len(task.classnames))
        measured += [
            _accuracy(embedded.name, name, prompt, score, mean, without[score]) for score, mean in means.items()
        ]
        error = metrics.expected_calibration_error(found.confidence, hits).item()
        measured.append(_calibration(embedded.name, name, prompt, error))
        arrays = f"zero_shot.{name}.{prompt}"
        items[f"{arrays}.hit_at_1"] = hits.numpy().astype(np.float32)
        items[f"{arrays}.prediction"] = found.prediction.numpy()
        if prompt == "ensemble":
            classes = _per_class(task.classnames, labels, hits, found.prediction)
    return measured, classes, items


class WithoutModel(NamedTuple):
    """What an accuracy is without any model: by lot, and by always the same answer, the best one."""

    chance: float
    commonest: float | None


def without_a_model(labels: torch.Tensor, num_classes: int) -> dict[str, WithoutModel]:
    """Return what each score of a classification into K classes is without any model; labels [n] in [0, K).

    >>> without_a_model(torch.tensor([0, 0, 0, 2]), 4)["top1"]  # by lot, and always class 0
    WithoutModel(chance=0.25, commonest=0.75)
    """
    counts = torch.bincount(labels, minlength=num_classes)
    present = int((counts > 0).sum())
    return {
        "top1": WithoutModel(1 / num_classes, counts.max().item() / len(labels)),
        "mean_per_class": WithoutModel(1 / num_classes, 1 / present),
        "top5": WithoutModel(min(5, num_classes) / num_classes, None),
    }


def _accuracy(set_name: str, task: str, prompt: str, score: str, mean: Mean, without: WithoutModel) -> Measured:
    """Return a zero-shot accuracy. Models are compared by top-1 and class means.

    The ensemble's top-1 is a headline, and the class mean must move with it: a model that gives the common classes
    more often gains the one and not the other.
    """
    of_ensemble, is_top1, is_class_mean = prompt == "ensemble", score == "top1", mean.group is not None
    is_compared = is_top1 or (is_class_mean and of_ensemble)
    measure = Measure(
        set_name,
        key=_zero_shot_key(task, prompt, score),
        label=f"zero-shot {task} {SCORES[score]}{PROMPTS.get(prompt, f', {prompt}')}",
        kind="zero_shot",
        value=mean.value,
        is_headline=of_ensemble and is_top1,
        is_metric=of_ensemble or is_top1,
        is_tested=of_ensemble and is_top1,
        chance=without.chance,
        commonest=without.commonest,
        agrees_with=_zero_shot_key(task, prompt, "mean_per_class") if of_ensemble and is_top1 else "",
        items=f"zero_shot.{task}.{prompt}.hit_at_1" if is_compared else "",
        image_index=f"zero_shot.{task}.image_index",
        group=f"zero_shot.{task}.label" if is_class_mean else "",
        task=task,
        prompt=prompt,
        score=score,
    )
    return Measured(measure, mean)


def _calibration(set_name: str, task: str, prompt: str, error: float) -> Measured:
    key, label = _zero_shot_key(task, prompt, "ece"), f"zero-shot {task} calibration error ({prompt})"
    of_ensemble = prompt == "ensemble"
    return Measured(
        Measure(
            set_name, key, label, "calibration", error, is_metric=of_ensemble, task=task, prompt=prompt, score="ece"
        )
    )


def _zero_shot_key(task: str, prompt: str, score: str) -> str:
    return f"zero_shot_{task}_{score}" if prompt == "ensemble" else f"zero_shot_{task}_{prompt}_{score}"


def _per_class(classnames: Sequence[str], labels: torch.Tensor, hits: torch.Tensor, prediction: torch.Tensor) -> Block:
    """Return each class's accuracy, worst first, the most frequent confusions, and how answers spread over classes.

    Classes of one name are numbered.
    """
    times = Counter(classnames)
    names = [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(classnames)]
    accuracy = metrics.class_means(hits, labels, len(classnames)).tolist()
    counts = torch.bincount(labels, minlength=len(classnames)).tolist()
    order = sorted((c for c in range(len(counts)) if counts[c]), key=lambda c: (accuracy[c], c))
    answers = torch.bincount(prediction, minlength=len(classnames))
    favourite = int(answers.argmax())
    return {
        "answers": {
            "num_classes": len(classnames),
            "num_present": len(order),
            "num_given": int((answers > 0).sum()),
            "favourite": names[favourite],
            "favourite_share": answers[favourite].item() / len(labels),
            "favourite_true_share": counts[favourite] / len(labels),
        },
        "per_class": [{"class": names[c], "top1": accuracy[c], "num_images": counts[c]} for c in order],
        "confusions": [
            {"true": names[true], "predicted": names[predicted], "count": count}
            for true, predicted, count in metrics.confusions(prediction, labels)
        ],
    }


# ---- gap ----


def _gap(directions: Directions, embedded: EmbeddedSet, seed: int) -> Block:
    """Return the gap suite on each image with its first caption; raw norms of the features as they are."""
    block: Block = {}
    index = embedded.text_image_index
    if is_captioned(embedded) and embedded.num_images >= MIN_PAIRS:
        first = torch.searchsorted(index, torch.arange(embedded.num_images))
        block = metrics.gap_suite(directions.image, directions.text[first], seed=seed)
    if directions.means is None:
        block["raw_image_norm"] = metrics.raw_norm(embedded.raw_image_features).item()
        if len(index):
            block["raw_text_norm"] = metrics.raw_norm(embedded.raw_text_features).item()
    return block
