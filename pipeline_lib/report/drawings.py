"""The figures of features, recall and training, from the arrays of both evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline_lib.report import figures
from pipeline_lib.report.canvas import Figure
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Drawing
from pipeline_lib.results.folders import CENTRED, Array, Variant
from pipeline_lib.results.gap import centred_pairs, first_pairs
from pipeline_lib.results.measure import DIRECTIONS

MAX_ROWS = 1000  # images whose cosines with each other are drawn


def draw_figures(inputs: ReportInputs) -> tuple[Any, ...]:
    """Draw features, recall and training."""
    drawn: list[Figure] = []
    if inputs.with_captions:
        drawn += _feature_figures(inputs, inputs.with_captions[0])
    drawn += [_recalls(inputs, name) for name in inputs.with_captions]
    rows = inputs.history
    names = [key for key in rows[0] if key == "loss" or key.endswith("_loss")] if rows else []
    if names:
        terms = {key: np.array([row.get(key, np.nan) for row in rows], dtype=float) for key in names}
        drawn.append(figures.training_curves(np.array([row["step"] for row in rows]), terms))
    return tuple(Drawing(figure) for figure in drawn)


def _feature_figures(inputs: ReportInputs, name: str) -> list[Figure]:
    pairs = {"base": first_pairs(inputs.base, name), "refined": first_pairs(inputs.refined, name)}
    spectra = {"base": pairs["base"], "mean-centred": centred_pairs(inputs.base, name), "refined": pairs["refined"]}
    gaps = {model: sides[0].mean(0) - sides[1].mean(0) for model, sides in spectra.items() if sides}
    return [
        figures.projection(pairs, floor=Variant(inputs.base).block(name, "gap").get("centroid_floor", 0.0)),
        figures.cosine_histogram({model: cosines(*features) for model, features in pairs.items()}),
        figures.gap_spectrum(gaps),
    ]


def cosines(image: Array, text: Array) -> dict[str, Array]:
    """Return the cosines of pairs, of non-pairs, and within each modality (at most `MAX_ROWS` evenly chosen pairs)."""
    if len(image) > MAX_ROWS:
        chosen = np.linspace(0, len(image) - 1, MAX_ROWS).round().astype(int)
        image, text = image[chosen], text[chosen]
    other = ~np.eye(len(image), dtype=bool)
    half = np.triu(other)
    return {
        "pairs": (image * text).sum(axis=1),
        "non-pairs": (image @ text.T)[other],
        "image–image": (image @ image.T)[half],
        "text–text": (text @ text.T)[half],
    }


def _recalls(inputs: ReportInputs, name: str) -> Figure:
    models = {
        "base": Variant(inputs.base),
        "mean-centred": Variant(inputs.base, CENTRED),
        "refined": Variant(inputs.refined),
    }
    by_direction: dict[str, dict[str, dict[int, figures.Interval]]] = {}
    for model, variant in models.items():
        for measure in variant.measures(name):
            if measure.kind == "recall":
                of_models = by_direction.setdefault(DIRECTIONS[measure.direction], {})
                of_models.setdefault(model, {})[measure.k] = measure.interval
    return figures.recall_bars(name, by_direction)
