"""Retrieval in both directions: log rank, recall, ranks; with repetitions of images and captions, and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate.embedded import Directions, EmbeddedSet
from pipeline_lib.evaluate.measured import Block, Items, Measured
from pipeline_lib.metrics import Ranks, Subset
from pipeline_lib.results.measure import DIRECTIONS, Measure, Unit
from pipeline_lib.results.statistics import Mean

UNITS: dict[str, Unit] = {"image_to_text": "image", "text_to_image": "caption"}  # what is searched with


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


def retrieval(
    directions: Directions, embedded: EmbeddedSet, ks: Sequence[int]
) -> tuple[list[Measured], Items, Block | None]:
    """Score both directions of retrieval.

    Returns:
        The measures, the headline of each direction first; their per-item arrays; and the same measures without
        repeated images and captions, on the set's own image numbers for the resampling, None where nothing repeats.
    """
    every = Subset(torch.arange(embedded.num_images), torch.arange(len(embedded.captions)))
    subsets = [every, *([distinct_rows(embedded)] if any(embedded.duplicates.values()) else [])]
    index = embedded.text_image_index
    ranks, *of_distinct = metrics.retrieval_ranks_within(directions.image, directions.text, index, subsets)
    measured, items = _retrieval(embedded.name, ranks, Queries.of(index, embedded.image_units), ks)
    if not of_distinct:
        return measured, items, None
    images, texts = subsets[1]
    queries = Queries.of(torch.searchsorted(images, index[texts]), images.numpy())
    without, _ = _retrieval(embedded.name, of_distinct[0], queries, ks)
    block = {"num_images": len(images), "num_captions": len(texts), "measures": [beside(one) for one in without]}
    return measured, items, block


def _retrieval(
    set_name: str, both: tuple[Ranks, Ranks], queries: Queries, ks: Sequence[int]
) -> tuple[list[Measured], Items]:
    units = queries.units
    num_candidates = {"image_to_text": len(units["text_to_image"]), "text_to_image": len(units["image_to_text"])}
    by_lot = _ranks_by_lot(queries.text_image_index, num_candidates["text_to_image"])
    measured: list[Measured] = []
    items: Items = {}
    for (direction, unit), ranks, lot in zip(units.items(), both, by_lot, strict=True):
        scores, chance = (one.log_rank_score(num_candidates[direction]) for one in (ranks, lot))
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


def beside(one: Measured) -> Measured:
    """Return a measure of some of the images, shown beside that of all: no headline, no metric, not compared."""
    key, label = f"distinct_{one.measure.key}", f"{one.measure.label} without repetitions"
    measure = replace(one.measure, key=key, label=label, is_headline=False, is_metric=False, is_tested=False)
    measure = replace(measure, items="", image_index="")
    return Measured(measure, one.mean)


def distinct_rows(embedded: EmbeddedSet) -> Subset:
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
    return Subset(embedded.text_image_index[texts].unique(), texts)
