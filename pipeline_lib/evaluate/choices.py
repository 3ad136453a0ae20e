"""What a set of choices scores: accuracy among captions of one image, or text, image and group score of pairs.

Scoring is indexing into features. What is compared must differ strictly: a tie is wrong. A model that says the same of
everything so scores 0, and one that says something random what `chance` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline_lib import metrics
from pipeline_lib.core.choices import Choice
from pipeline_lib.evaluate.embedded import EmbeddedChoices
from pipeline_lib.evaluate.measured import Measured
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

HEADLINES = ("caption_choice_accuracy", "image_pairs_group_score")
LABELS = {
    "caption_choice_accuracy": "caption choice",
    "caption_choice_tot": "text-only choice (TOT)",
    "image_pairs_text_score": "text score",
    "image_pairs_image_score": "image score",
    "image_pairs_group_score": "group score",
}
PAIR_CHANCES = {"image_pairs_group_score": 1 / 6, "image_pairs_text_score": 1 / 4, "image_pairs_image_score": 1 / 4}


class Selection(NamedTuple):
    """The choices that one measure is the mean over."""

    score: str  # a key of `LABELS`
    group: str  # empty: all
    rows: np.ndarray  # [n] numbers of the choices

    @property
    def name(self) -> str:
        """Return the stem of its arrays and its key as a metric."""
        return f"{self.score}_{self.group}" if self.group else self.score


def score_choices(
    set_name: str, embedded: EmbeddedChoices, image_features: torch.Tensor, text_features: torch.Tensor
) -> tuple[list[Measured], dict[str, np.ndarray]]:
    """Score all choices of a set in one variant.

    Args:
        set_name: The set.
        embedded: Its choices, and the row of each image and text.
        image_features: [N, D]; only directions count.
        text_features: [T, D], of the choices' texts.

    Returns:
        The headline, the other scores, and each of them by group; and the per-item arrays, 1 where it is right.
    """
    hits = (_pair_hits if embedded.choices[0].is_pair else _caption_hits)(embedded, image_features, text_features)
    units = image_units(embedded)
    measured: list[Measured] = []
    items: dict[str, np.ndarray] = {}
    for selection in select(embedded.choices):
        values = hits[selection.score][selection.rows]
        items[f"{selection.name}.correct"] = values.astype(np.uint8)
        chances = [chance(embedded.choices[row], selection.score) for row in selection.rows.tolist()]
        mean = Mean(values.astype(np.float64), units[selection.rows])
        measured.append(_measured(set_name, embedded.choices, selection, mean, float(np.mean(chances))))
    return measured, items


def common_items(embedded: EmbeddedChoices) -> dict[str, np.ndarray]:
    """Return the per-item arrays that every variant has alike: the image that each choice is resampled with."""
    units = image_units(embedded)
    return {f"{one.name}.image_index": units[one.rows] for one in select(embedded.choices)}


def select(choices: Sequence[Choice]) -> Iterator[Selection]:
    """Yield what is measured: each score over all choices that it is defined on, then by group where there are some."""
    everything = np.arange(len(choices))
    if choices[0].is_pair:
        scores = dict.fromkeys(PAIR_CHANCES, everything)
    else:
        scores = {"caption_choice_accuracy": everything, "caption_choice_tot": _triples(choices)}
    groups = sorted({group for choice in choices for group in choice.groups})
    for score, rows in scores.items():
        if len(rows):
            yield Selection(score, "", rows)
        for group in groups:
            chosen = np.array([row for row in rows.tolist() if group in choices[row].groups])
            if 0 < len(chosen) < len(rows):
                yield Selection(score, group, chosen)


def chance(choice: Choice, score: str) -> float:
    """Return how likely a score is right of a choice if all cosines are drawn alike.

    Of p right and n wrong texts all p come first in 1 of C(p + n, p) orders. Of the three cosines among two right texts
    and a wrong one each is as likely the largest. Pairs: see `metrics.pair_hits`.

    >>> chance(Choice(key="", images=("i",), captions=("a", "b"), negatives=("c",)), "caption_choice_accuracy")
    0.3333333333333333
    """
    if score == "caption_choice_tot":
        return 1 / 3
    num_right = len(choice.captions)
    return PAIR_CHANCES.get(score) or 1 / math.comb(num_right + len(choice.negatives), num_right)


def image_units(embedded: EmbeddedChoices) -> np.ndarray:
    """Return the image that each choice is resampled with: [C] rows.

    Choices that share an image, directly or over others, share its difficulty and are one unit; it goes by the first of
    their images.
    """
    row, size = embedded.image_row, len(embedded.image_row)
    one, other = np.array([[row[choice.images[0]], row[choice.images[-1]]] for choice in embedded.choices]).T
    _, component = connected_components(
        coo_array((np.ones(len(one)), (one, other)), shape=(size, size)), directed=False
    )
    _, first = np.unique(component, return_index=True)
    return first[component[one]]


def _caption_hits(
    embedded: EmbeddedChoices, image_features: torch.Tensor, text_features: torch.Tensor
) -> dict[str, np.ndarray]:
    """Return {score: whether each choice is right [C]} of choices among the texts of an image."""
    choices, row = embedded.choices, embedded.text_row
    on_image = [[(embedded.image_row[one.images[0]], row[text]) for text in one.texts] for one in choices]
    triples = _triples(choices)
    in_text = [
        [(row[first], row[second]), (row[first], row[negative]), (row[second], row[negative])]
        for first, second, negative in (choices[number].texts for number in triples)
    ]
    by_text = np.zeros(len(choices), dtype=bool)
    by_text[triples] = _choice_hits(text_features, text_features, in_text, [1] * len(in_text))
    num_right = [len(one.captions) for one in choices]
    by_image = _choice_hits(image_features, text_features, on_image, num_right)
    return {"caption_choice_accuracy": by_image, "caption_choice_tot": by_text}


def _triples(choices: Sequence[Choice]) -> np.ndarray:
    """Return the numbers of the choices of two right texts and a wrong one."""
    return np.flatnonzero([len(choice.captions) == 2 and len(choice.negatives) == 1 for choice in choices])


def _choice_hits(
    first: torch.Tensor, second: torch.Tensor, pairs: Sequence[Sequence[tuple[int, int]]], num_right: Sequence[int]
) -> np.ndarray:
    """Return whether, in each list of pairs of rows, the first `num_right` cosines are above the others."""
    rows = torch.tensor([pair for of_choice in pairs for pair in of_choice], dtype=torch.int64).reshape(-1, 2)
    cosines = metrics.cosines(first, second, rows[:, 0], rows[:, 1]).split([len(of_choice) for of_choice in pairs])
    found = [metrics.choice_hits(one[:count], one[count:]) for one, count in zip(cosines, num_right, strict=True)]
    return np.array(found, dtype=bool)


def _pair_hits(
    embedded: EmbeddedChoices, image_features: torch.Tensor, text_features: torch.Tensor
) -> dict[str, np.ndarray]:
    """Return {score: whether each pair is right [C]}."""
    images = torch.tensor([[embedded.image_row[key] for key in choice.images] for choice in embedded.choices])
    texts = torch.tensor([[embedded.text_row[text] for text in choice.captions] for choice in embedded.choices])
    image_index, text_index = images.repeat_interleave(2, 1).flatten(), texts.repeat(1, 2).flatten()
    cosines = metrics.cosines(image_features, text_features, image_index, text_index)
    found = metrics.pair_hits(cosines.reshape(-1, 2, 2))
    return {f"image_pairs_{name}_score": hits.numpy() for name, hits in found._asdict().items()}


def _measured(set_name: str, choices: Sequence[Choice], selection: Selection, mean: Mean, chance: float) -> Measured:
    """Return a score over some choices; over all of them the set's headline has a test, the others an interval."""
    is_headline = selection.score in HEADLINES and not selection.group
    label = LABELS[selection.score]
    if selection.score == "caption_choice_accuracy" and all(len(choice.captions) == 2 for choice in choices):
        label = f"{label} (ITT)"
    measure = Measure(
        set_name,
        key=selection.name,
        label=f"{label}, {selection.group}" if selection.group else label,
        kind="choice",
        value=mean.value,
        chance=chance,
        is_headline=is_headline,
        is_tested=is_headline,
        items=f"{selection.name}.correct",
        image_index=f"{selection.name}.image_index",
        task=selection.group,
        score=selection.score,
    )
    return Measured(measure, mean)
