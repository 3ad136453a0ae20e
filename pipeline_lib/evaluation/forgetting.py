"""What refinement may cost: a linear probe on the frozen image features, and weights between base and refined.

The probe asks whether the classes can still be told apart by a linear classifier, whatever the prompts say. WiSE-FT
(Wortsman et al., CVPR 2022, arXiv 2109.01903) evaluates models between the two, which often keep most of the gain for
little of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.errors import UserError
from pipeline_lib.metrics import logistic_regression
from pipeline_lib.statistics import Mean

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C, the inverse of the regularisation: the weakest last


class Labelled(NamedTuple):
    """Features with a class each."""

    features: np.ndarray  # [n, D]
    labels: np.ndarray  # [n]


class Probe(NamedTuple):
    """A linear probe's result."""

    top1: Mean  # over the test images, by their number in the set
    strength: float  # the C that was chosen
    num_train: int


def linear_probe(train: Labelled, validation: Labelled, test: Labelled, test_index: np.ndarray) -> Probe:
    """Accuracy of `metrics.logistic_regression` on frozen features.

    The strength is the one of STRENGTHS with the best accuracy on `validation` after fitting `train` (the strongest
    regularisation among equals); the classifier is then fitted on both.

    Args:
        train: What the candidates are fitted on.
        validation: What the strength is chosen on.
        test: What the accuracy is measured on.
        test_index: [n] image number of each test item, for the resampling.
    """
    accuracy = [logistic_regression(*train, strength=c).score(*validation) for c in STRENGTHS]
    strength = STRENGTHS[int(np.argmax(accuracy))]
    joined = Labelled(*(np.concatenate(both) for both in zip(train, validation, strict=True)))
    correct = logistic_regression(*joined, strength=strength).predict(test.features) == test.labels
    return Probe(Mean(correct.astype(np.float64), test_index), strength, len(joined.labels))


def stratified_halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the items with every class shared out evenly; the odd one of a class goes to the first.

    Args:
        labels: [N] classes.
        seed: Decides who goes where.

    Returns:
        Sorted item numbers of both halves.
    """
    generator = np.random.default_rng(seed)
    first = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        first.append(members[: -(-len(members) // 2)])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def interpolate(
    base: Mapping[str, torch.Tensor], refined: Mapping[str, torch.Tensor], mix: float
) -> dict[str, torch.Tensor]:
    """(1 − mix) · base + mix · refined, tensor by tensor; what is not floating point stays the refined model's.

    Raises:
        UserError: The two do not have the same tensors.
    """
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in refined.items()}:
        raise UserError(
            "WiSE-FT: base and refined model have different tensors; run `dvc repro`, or evaluate.wise_ft: []"
        )
    return {
        name: torch.lerp(base[name], tensor, mix) if tensor.is_floating_point() else tensor
        for name, tensor in refined.items()
    }
