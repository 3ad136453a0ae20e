"""Retrieval among captions: whether a caption finds another one of its image. It asks the text side alone.

Two scores, R@1 each, no prompt before the texts: `pair` searches the second captions of all images with the first of
each, `any` searches all other captions with each caption and takes any of its image. Images with one caption ask
nothing; theirs are among the candidates of `any`. Captions that stand at several images count as wrong answers of each
other, as in the retrieval of images, and equal features share their places; without such repetitions both are measured
beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.measured import Items, Measured
from pipeline_lib.evaluate.retrieval import beside, distinct_rows
from pipeline_lib.metrics import Ranks
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

MIN_IMAGES = 2  # with two captions or more: with one there is nothing to be mistaken for


class CaptionQueries(NamedTuple):
    """Which of some captions of a set are searched with: rows of its captions."""

    first: torch.Tensor  # [n] of each image with two of these captions or more, and
    second: torch.Tensor  # [n] the next one
    asking: torch.Tensor  # [q] places in these captions, of those with another one of their image
    num_captions: int

    @classmethod
    def of(cls, text_image_index: torch.Tensor, texts: torch.Tensor) -> CaptionQueries:
        """Make the queries of the captions `texts`, rows in the order of their images; [M] is each caption's image."""
        _, counts = text_image_index[texts].unique_consecutive(return_counts=True)
        start = (counts.cumsum(0) - counts)[counts > 1]
        asking = (counts.repeat_interleave(counts) > 1).nonzero()[:, 0]
        return cls(texts[start], texts[start + 1], asking, len(texts))


def common_items(embedded: EmbeddedSet) -> Items:
    """Return the image of each query, which every variant has alike; nothing where too few images have two captions."""
    index = embedded.text_image_index
    queries = CaptionQueries.of(index, torch.arange(len(index)))
    if len(queries.first) < MIN_IMAGES:
        return {}
    rows = {"pair": queries.first, "any": queries.asking}
    return {f"caption_{kind}.image_index": index[of_kind].numpy() for kind, of_kind in rows.items()}


def caption_retrieval(text: torch.Tensor, embedded: EmbeddedSet) -> tuple[list[Measured], Items, list[Measured]]:
    """Score both searches; `text` [M, D] are the directions of the captions.

    Returns:
        The measures, their per-item arrays, and the measures without repeated images and captions, where there are any.
        All are empty where too few images have two captions.
    """
    index = embedded.text_image_index
    subsets = [
        torch.arange(len(index)),
        *([distinct_rows(embedded).texts] if any(embedded.duplicates.values()) else []),
    ]
    queries = [CaptionQueries.of(index, texts) for texts in subsets]
    if len(queries[0].first) < MIN_IMAGES:
        return [], {}, []
    of_any = metrics.caption_ranks_within(text, index, subsets)
    (measured, items), *without = (
        _measure(text, embedded, of_subset, texts, ranks)
        for of_subset, texts, ranks in zip(queries, subsets, of_any, strict=True)
        if len(of_subset.first) >= MIN_IMAGES
    )
    return measured, items, [beside(one) for distinct, _ in without for one in distinct]


def _measure(
    text: torch.Tensor, embedded: EmbeddedSet, queries: CaptionQueries, texts: torch.Tensor, of_any: Ranks
) -> tuple[list[Measured], Items]:
    index, others = embedded.text_image_index, queries.num_captions - 1
    image = index[texts[queries.asking]]
    siblings = torch.bincount(index[texts])[image] - 1
    by_lot = Ranks(torch.zeros_like(siblings), torch.full_like(siblings, others), siblings)
    of_pair = metrics.caption_pair_ranks(text, queries.first, queries.second)
    pair = _recall(
        embedded,
        "pair",
        "caption → second",
        of_pair,
        index[queries.first],
        len(of_pair.tied),
        1 / len(of_pair.tied),
    )
    asked = Ranks(*(values[queries.asking] for values in of_any))
    sibling = _recall(embedded, "any", "caption → other", asked, image, others, by_lot.hit_at(1).mean().item())
    return [pair, sibling], {
        one.measure.items: one.mean.values.astype(np.float32) for one in (pair, sibling) if one.mean
    }


def _recall(
    embedded: EmbeddedSet, kind: str, label: str, ranks: Ranks, image: torch.Tensor, num_candidates: int, chance: float
) -> Measured:
    """Return R@1 of one search, with an interval and no test; `image` [q] is that of each query."""
    mean = Mean(ranks.hit_at(1).numpy(), embedded.image_units[image.numpy()])
    measure = Measure(
        embedded.name,
        key=f"caption_{kind}_recall_at_1",
        label=f"{label} R@1, of {num_candidates:,}",
        kind="caption_recall",
        value=mean.value,
        chance=chance,
        unit="caption",
        items=f"caption_{kind}_hit_at_1",
        image_index=f"caption_{kind}.image_index",
        k=1,
        num_candidates=num_candidates,
    )
    return Measured(measure, mean)
