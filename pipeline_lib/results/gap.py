"""The modality gap of two models on the same pairs: its size, what is free, and how it changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_lib.core.errors import UserError
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, Array, Evaluation, Variant
from pipeline_lib.results.statistics import Interval


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


def compare_gaps(base: Evaluation, refined: Evaluation, set_name: str, settings: Certainty) -> Gap | None:
    """Compare the gaps of two models on the same pairs of a set; None where they were not measured, or on one image.

    Raises:
        UserError: The two were not evaluated on the same items.
    """
    variants = (Variant(base), Variant(refined), Variant(base, CENTRED))
    blocks = [variant.block(set_name, "gap") for variant in variants]
    distances = [block.get("centroid_distance") for block in blocks]
    if distances[0] is None or distances[1] is None:
        return None
    unit = _units(base, set_name)
    if len(np.unique(unit)) < 2:
        return None

    def against(before: tuple[Array, Array]) -> Interval:
        after = first_pairs(refined, set_name)
        if len(before[0]) != len(after[0]):
            raise UserError(f"{base.directory} and {refined.directory}: `{set_name}` has other pairs; dvc repro")
        return statistics.distance_change(
            before[0] - before[1],
            after[0] - after[1],
            unit,
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
    """Return unit features of every image that has a caption, and of its first one: [P, D] and [P, D]."""
    features = evaluation.features(set_name)
    rows, captions = np.unique(features["text_image_index"], return_index=True)
    return unit_rows(features["raw_image_features"][rows]), unit_rows(features["raw_text_features"][captions])


def _units(evaluation: Evaluation, set_name: str) -> Array:
    """Return the image of each of `first_pairs`, under the number of the first of its copies: [P]."""
    return evaluation.items(set_name)["image_unit"][np.unique(evaluation.features(set_name)["text_image_index"])]


def centred_pairs(evaluation: Evaluation, set_name: str) -> tuple[Array, Array] | None:
    """Return `first_pairs` less each modality's mean on other images; None where no variant is mean-centred."""
    features = evaluation.features(set_name)
    if "text_mean" not in features:
        return None
    image, text = first_pairs(evaluation, set_name)
    return unit_rows(image - features["image_mean"]), unit_rows(text - features["text_mean"])


def unit_rows(rows: Array) -> Array:
    """Return rows [N, D] divided by their norm."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
