"""What an embedded set scores: retrieval, zero-shot, choices and the modality gap, as the model is and centred.

Pure functions of an `EmbeddedSet`. A block of results is a nested dict in which a `Measured` is a measure beside the
items that it is the mean of; `with_intervals` replaces each by what results.json stores, in one pass over the
resamples. Beside the blocks come the per-item arrays, from which two models are compared on the same items.

A new measure is one `Measured` more, in `retrieval`, `caption_retrieval`, `zero_shot`, `choices` or `probes`. What it
is (see `Measure`) decides where it goes from there: tables, figures, tests and metrics read its attributes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate import caption_retrieval, choices
from pipeline_lib.evaluate.embedded import Directions, EmbeddedSet, Means
from pipeline_lib.evaluate.measured import Block, Items
from pipeline_lib.evaluate.retrieval import retrieval
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.evaluate.zero_shot import zero_shot

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
    if embedded.is_captioned:
        with watch("retrieval"):
            block["measures"], items, distinct = retrieval(directions, embedded, settings.recall_at)
        if distinct:
            block["retrieval_distinct"] = distinct
        with watch("caption_retrieval"):
            measured, of_captions, of_distinct = caption_retrieval.caption_retrieval(directions.text, embedded)
        block["measures"] += measured
        items |= of_captions
        if distinct:
            distinct["measures"] += of_distinct
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
    items: Items = {"image_unit": embedded.image_units}
    if embedded.is_captioned:
        items["text_image_index"] = embedded.text_image_index.numpy()
        items |= caption_retrieval.common_items(embedded)
    for name, task in embedded.tasks.items():
        items[f"zero_shot.{name}.label"] = task.labels[task.rows].numpy()
        items[f"zero_shot.{name}.image_index"] = task.rows.numpy()
    return items | (choices.common_items(embedded.choices) if embedded.choices else {})


def _gap(directions: Directions, embedded: EmbeddedSet, seed: int) -> Block:
    """Return the gap suite on each image with its first caption; raw norms of the features as they are."""
    block: Block = {}
    index = embedded.text_image_index
    if embedded.is_captioned and embedded.num_images >= MIN_PAIRS:
        first = torch.searchsorted(index, torch.arange(embedded.num_images))
        block = metrics.gap_suite(directions.image, directions.text[first], seed=seed)
    if directions.means is None:
        block["raw_image_norm"] = metrics.raw_norm(embedded.raw_image_features).item()
        if len(index):
            block["raw_text_norm"] = metrics.raw_norm(embedded.raw_text_features).item()
    return block
