"""What an embedded set scores: retrieval, zero-shot classification and the modality gap, as the model is and centred.

Pure functions of an `EmbeddedSet`. A block of results is a nested dict whose leaves are numbers or `Mean`s, statistics
that still know their items; `with_intervals` replaces those by {"value", "low", "high"} in one pass over the resamples.
Beside the blocks come the per-item arrays, from which two models are compared on the same items.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate.embedding import EmbeddedSet, EmbeddedTask
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results import keys as naming
from pipeline_lib.results import statistics
from pipeline_lib.results.statistics import Mean

Block = dict[str, Any]
Items = dict[str, np.ndarray]
MIN_PAIRS = 6  # of the gap suite: ten neighbours need eleven points


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
        """The features of `embedded`, centred if there are `means`."""
        image, text = embedded.raw_image_features, embedded.raw_text_features
        if means is not None:
            image = metrics.mean_centre(image, means.image)
            text = metrics.mean_centre(text, means.text) if len(text) else text
        return cls(image, text, means)

    def classes(self, raw_prompt_features: torch.Tensor) -> torch.Tensor:
        """Class directions from prompts [K, P, D], centred like captions: [K, D]."""
        prompts = raw_prompt_features
        if self.means is not None:
            prompts = metrics.mean_centre(prompts.flatten(0, 1), self.means.text).reshape(prompts.shape)
        return metrics.class_embeddings(prompts)


def modality_means(centring: EmbeddedSet) -> Means:
    """Means over the images and the captions of a set that has some."""
    return Means(metrics.modality_mean(centring.raw_image_features), metrics.modality_mean(centring.raw_text_features))


def score(
    embedded: EmbeddedSet, settings: EvaluateSettings, means: Means | None = None, watch: Stopwatch | None = None
) -> tuple[Block, Items]:
    """Everything that is measured on a set in one variant.

    Args:
        embedded: The set.
        settings: Places of recall, seed of the separability's halves.
        means: Centre with these; None: the features as they are.
        watch: Times each block.

    Returns:
        The block (`retrieval`, `retrieval_distinct`, `zero_shot`, `gap`; absent where the set has nothing for it) and
        the per-item arrays.
    """
    watch = watch or Stopwatch()
    directions = Directions.of(embedded, means)
    block: Block = {}
    items: Items = {}
    if is_captioned(embedded):
        with watch("retrieval"):
            block["retrieval"], items = _retrieval(directions, embedded.text_image_index, settings.recall_at)
        if sum(duplicates(embedded).values()):
            with watch("retrieval_distinct"):
                block["retrieval_distinct"] = _retrieval_distinct(directions, embedded, settings.recall_at)
    if embedded.tasks:
        with watch("zero_shot"):
            block["zero_shot"], of_tasks = _zero_shots(directions, embedded)
        items |= of_tasks
    with watch("gap"):
        block["gap"] = _gap(directions, embedded, settings.seed)
    return block, items


def is_captioned(embedded: EmbeddedSet) -> bool:
    """Whether every image has a caption, so that the set can be searched."""
    return len(embedded.text_image_index.unique()) == embedded.num_images


def duplicates(embedded: EmbeddedSet) -> dict[str, int]:
    """How many images and captions repeat an earlier one of the set, by content."""
    return {
        "images": len(embedded.image_hashes) - len(set(embedded.image_hashes)),
        "captions": len(embedded.captions) - len(set(embedded.captions)),
    }


# ---- retrieval ----


def _retrieval(directions: Directions, text_image_index: torch.Tensor, ks: Sequence[int]) -> tuple[Block, Items]:
    both = metrics.retrieval_ranks(directions.image, directions.text, text_image_index)
    image_of = {"image_to_text": np.arange(len(directions.image)), "text_to_image": text_image_index.numpy()}
    block: Block = {}
    items: Items = {"text_image_index": text_image_index.numpy()}
    for (direction, image_index), ranks in zip(image_of.items(), both, strict=True):
        for k in sorted({1, *ks}):
            hits = ranks.hit_at(k).numpy()
            block[f"{direction}_recall_at_{k}"] = Mean(hits, image_index)
            items[f"{direction}_hit_at_{k}"] = hits.astype(np.float32)
        places = ranks.expected().numpy()
        block[f"{direction}_median_rank"] = float(np.median(places))
        items[f"{direction}_rank"] = places.astype(np.float32)
    return block, items


def _retrieval_distinct(directions: Directions, embedded: EmbeddedSet, ks: Sequence[int]) -> Block:
    """Retrieval without repeated images and captions, on the set's own image numbers for the resampling."""
    images, texts = distinct_rows(embedded)
    index = torch.searchsorted(images, embedded.text_image_index[texts])
    subset = Directions(directions.image[images], directions.text[texts], directions.means)
    block, _ = _retrieval(subset, index, ks)
    numbers = images.numpy()
    return {
        name: leaf._replace(image_index=numbers[leaf.image_index]) if isinstance(leaf, Mean) else leaf
        for name, leaf in {**block, "num_images": len(images), "num_captions": len(texts)}.items()
    }


def distinct_rows(embedded: EmbeddedSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the images and captions that remain when repetitions go: the first of each stays.

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


def _zero_shots(directions: Directions, embedded: EmbeddedSet) -> tuple[Block, Items]:
    block: Block = {}
    items: Items = {}
    for name, task in embedded.tasks.items():
        block[name], of_task = _zero_shot(directions, task, embedded.logit_scale)
        items |= {f"zero_shot.{name}.{key}": value for key, value in of_task.items()}
    return block, items


def _zero_shot(directions: Directions, task: EmbeddedTask, logit_scale: float) -> tuple[Block, Items]:
    block: Block = {}
    rows, labels = task.rows, task.labels[task.rows]
    image, image_index = directions.image if len(rows) == len(task.labels) else directions.image[rows], rows.numpy()
    items: Items = {"label": labels.numpy(), "image_index": image_index}
    for kind, prompts in task.raw_prompt_features.items():
        found = metrics.classify(image, directions.classes(prompts), labels, logit_scale)
        hits = found.ranks.hit_at(1)
        block[kind] = {
            "top1": Mean(hits.numpy(), image_index),
            "top5": Mean(found.ranks.hit_at(5).numpy(), image_index),
            "mean_per_class": Mean(hits.numpy(), image_index, labels.numpy()),
            "ece": metrics.expected_calibration_error(found.confidence, hits).item(),
        }
        items[f"{kind}.hit_at_1"] = hits.numpy().astype(np.float32)
        items[f"{kind}.correct"] = (hits == 1).numpy().astype(np.uint8)
        items[f"{kind}.prediction"] = found.prediction.numpy()
        if kind == "ensemble":
            block[kind] |= _per_class(task.classnames, labels, hits, found.prediction)
    return block, items


def _per_class(classnames: Sequence[str], labels: torch.Tensor, hits: torch.Tensor, prediction: torch.Tensor) -> Block:
    """Accuracy of each class that occurs, worst first, and the most frequent confusions; twins carry their number."""
    times = Counter(classnames)
    names = [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(classnames)]
    accuracy = metrics.class_means(hits, labels, len(classnames)).tolist()
    counts = torch.bincount(labels, minlength=len(classnames)).tolist()
    order = sorted((c for c in range(len(counts)) if counts[c]), key=lambda c: (accuracy[c], c))
    return {
        "per_class": [{"class": names[c], "top1": accuracy[c], "num_images": counts[c]} for c in order],
        "confusions": [
            {"true": names[true], "predicted": names[predicted], "count": count}
            for true, predicted, count in metrics.confusions(prediction, labels)
        ],
    }


# ---- gap ----


def _gap(directions: Directions, embedded: EmbeddedSet, seed: int) -> Block:
    """The gap suite on each image with its first caption; raw norms of the features as they are."""
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


# ---- blocks ----


def with_intervals(block: Block, num_images: int, settings: EvaluateSettings) -> Block:
    """`block` with each `Mean` as {"value", "low", "high"}, all from the same resamples of the images."""
    means = dict(_means(block, ()))
    found = statistics.intervals(
        {"/".join(path): mean for path, mean in means.items()},
        num_images,
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )

    def replace(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mean):
            return found["/".join(path)]._asdict()
        return {k: replace(v, (*path, k)) for k, v in value.items()} if isinstance(value, dict) else value

    return replace(block, ())


def _means(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mean]]:
    if isinstance(value, Mean):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _means(inner, (*path, key))


def number(leaf: Any) -> float:
    """A leaf of a block as one number: a plain one, a `Mean`, or a value with its interval."""
    return leaf.value if isinstance(leaf, Mean) else leaf["value"] if isinstance(leaf, dict) else leaf


def headlines(block: Block) -> dict[str, float]:
    """The numbers that a verdict names, see `naming.recalls` and `naming.zero_shot_scores`."""
    found = [*naming.recalls(block.get("retrieval", {})), *naming.zero_shot_scores(block.get("zero_shot", {}))]
    return {one.key: number(one.leaf) for one in found if one.is_headline}


def flat(block: Block) -> dict[str, float]:
    """The numbers of a block by name: what DVC and MLflow compare. Of prompts beside the ensemble, top-1 only."""
    values = {key: number(leaf) for key, leaf in block.get("retrieval", {}).items()}
    for one in naming.zero_shot_scores(block.get("zero_shot", {})):
        if one.prompt == "ensemble" or one.score == "top1":
            values[one.key] = number(one.leaf)
    return values | block["gap"]
