"""Calibration with a temperature fitted anew: the calibration error that remains when its cheapest part is mended.

Refinement moves cosines and leaves the logit scale as it was, so a model may classify as well as before and no longer
know how sure to be. One temperature for each task mends that and changes no prediction. It is fitted on the selection
part where that has labels of the task. Elsewhere it is fitted on halves of the set, and each half measured with the
temperature of the other, so that the error is over the same images as without.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.measured import Measured
from pipeline_lib.evaluate.probes import stratified_halves
from pipeline_lib.results.measure import Measure

log = logging.getLogger(__name__)


class Classified(NamedTuple):
    """What `metrics.classify` takes: images, the directions of all classes, and the class of each image."""

    image: torch.Tensor  # [n, D]
    classes: torch.Tensor  # [K, D]
    labels: torch.Tensor  # [n]

    def at(self, rows: np.ndarray) -> Classified:
        """Return some of the images."""
        return self._replace(image=self.image[rows], labels=self.labels[rows])


class Fold(NamedTuple):
    """What one temperature is fitted on, and the rows of the set that it serves."""

    fit: Classified
    rows: np.ndarray


def recalibrated(
    one: EmbeddedSet, selection: EmbeddedSet, *, seed: int, base_scale: float | None = None
) -> list[Measured]:
    """Measure the calibration error of each task with its temperature refitted, and that temperature.

    Args:
        one: The set.
        selection: The selection part.
        seed: Decides the halves, where the selection part has no labels of a task.
        base_scale: The logit scale of the base model. If the model has another, the error with the base's is measured
            too; otherwise that is the error without anything refitted.
    """
    measured: list[Measured] = []
    for name in one.tasks:
        own = _classified(one, name)
        folds, source = _folds(one, own, selection, name, seed)
        if min(len(side) for fold in folds for side in (fold.fit.labels, fold.rows)) == 0:
            log.warning("%s: too few images of `%s` to refit a temperature", one.name, name)
            continue
        temperatures = [metrics.refit_temperature(*fold.fit, one.logit_scale) for fold in folds]
        scales = torch.empty(len(own.labels), dtype=torch.float64)
        for fold, temperature in zip(folds, temperatures, strict=True):
            scales[fold.rows] = one.logit_scale / temperature
        mean = math.exp(float(np.mean(np.log(temperatures))))
        measured += [
            _error_measure(one.name, name, "ece_refitted", f"temperature refitted on {source}", _error(own, scales)),
            _temperature_measure(one.name, name, source, mean),
        ]
        if base_scale is not None and not math.isclose(base_scale, one.logit_scale, rel_tol=1e-6):
            error = _error(own, torch.full_like(scales, base_scale))
            measured.append(_error_measure(one.name, name, "ece_base_scale", "logit scale of the base", error))
    return measured


def _classified(one: EmbeddedSet, name: str) -> Classified:
    task = one.tasks[name]
    classes = metrics.class_embeddings(task.raw_prompt_features["ensemble"])
    return Classified(one.raw_image_features[task.rows], classes, task.labels[task.rows])


def _folds(
    one: EmbeddedSet, own: Classified, selection: EmbeddedSet, name: str, seed: int
) -> tuple[Sequence[Fold], str]:
    """Return what temperatures are fitted on, with the set's own class directions, and what it is called."""
    task = selection.tasks.get(name)
    if task is not None and task.classnames == one.tasks[name].classnames:
        fit = Classified(selection.raw_image_features[task.rows], own.classes, task.labels[task.rows])
        return [Fold(fit, np.arange(len(own.labels)))], selection.name
    halves = stratified_halves(own.labels.numpy(), seed)
    return [Fold(own.at(fit), rows) for fit, rows in (halves, halves[::-1])], "the other half"


def _error(own: Classified, scales: torch.Tensor) -> float:
    """Return the calibration error with a logit scale for each image."""
    confidence, hits = torch.empty_like(scales), torch.empty_like(scales)
    for scale in scales.unique():
        rows = (scales == scale).nonzero()[:, 0].numpy()
        found = metrics.classify(*own.at(rows), scale.item())
        confidence[rows], hits[rows] = found.confidence.double(), found.ranks.hit_at(1)
    return metrics.expected_calibration_error(confidence, hits).item()


def _error_measure(set_name: str, task: str, score: str, how: str, value: float) -> Measured:
    key, label = f"zero_shot_{task}_{score}", f"zero-shot {task} calibration error, {how}"
    return Measured(Measure(set_name, key, label, "calibration", value, task=task, prompt="ensemble", score=score))


def _temperature_measure(set_name: str, task: str, source: str, value: float) -> Measured:
    key, label = f"zero_shot_{task}_temperature", f"zero-shot {task} temperature, refitted on {source}"
    measure = Measure(set_name, key, label, "temperature", value, task=task, prompt="ensemble", score="temperature")
    return Measured(replace(measure, is_share=False, is_metric=False))
