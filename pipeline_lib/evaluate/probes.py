"""Linear probes on the frozen image features: can the classes still be told apart, whatever the prompts say?

What a task is learned from (`TrainingData`, `learn_from`) serves the few-shot curves too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.embedding import Embedder, labels
from pipeline_lib.evaluate.inputs import EvaluationInputs
from pipeline_lib.evaluate.measured import Block, Items, Measured, with_intervals
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.metrics import logistic_regression
from pipeline_lib.model.features import l2_normalize
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

log = logging.getLogger(__name__)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # C, the inverse of the regularisation: the weakest last


class Labelled(NamedTuple):
    """Features with a class each."""

    features: np.ndarray  # [n, D]
    labels: np.ndarray  # [n]
    keys: np.ndarray  # [n] of the samples

    def at(self, rows: np.ndarray) -> Labelled:
        """Return some of them."""
        return Labelled(*(each[rows] for each in self))

    def joined(self, other: Labelled) -> Labelled:
        """Return these and others."""
        return Labelled(*(np.concatenate(both) for both in zip(self, other, strict=True)))


class TrainingData(NamedTuple):
    """What a task is learned from."""

    classnames: tuple[str, ...]
    train: Labelled
    validation: Labelled  # strengths are chosen on it
    sources: list[str]  # the parts that they are


class Probe(NamedTuple):
    """A linear probe's result."""

    top1: Mean  # over the test images, by their number in the set
    strength: float  # the C that was chosen
    num_train: int


def training_data(embedder: Embedder, inputs: EvaluationInputs, selection: EmbeddedSet) -> dict[str, TrainingData]:
    """Return what each task is learned from: the training part and the selection part, where both have its labels.

    Tasks that no evaluated set has are left out.
    """
    part = inputs.training
    if part is None:
        return {}
    alike = {
        name: task
        for name, task in selection.tasks.items()
        if tuple(part.tasks.get(name, {}).get("classnames", ())) == task.classnames
        and any(name in one.tasks for one in inputs.sets)
    }
    entries = list(part.entries()) if alike else []
    shared = {name: task for name, task in alike.items() if any(name in entry.labels for entry in entries)}
    if not shared:
        return {}
    images = embedder.embed_images(part)
    return {
        name: TrainingData(
            task.classnames,
            _labelled(images, labels(entries, name), [entry.key for entry in entries]),
            _labelled(selection.raw_image_features, task.labels, selection.keys),
            [part.name, selection.name],
        )
        for name, task in shared.items()
    }


def probe_sets(
    sets: Sequence[EmbeddedSet], training: Mapping[str, TrainingData], settings: EvaluateSettings
) -> tuple[Block, dict[str, Items]]:
    """Probe every task of every set.

    Returns:
        {set: {task: {"measure", "trained_on", "num_train", "C", "num_test"}}}, and per-item arrays by set.
    """
    block: Block = {}
    items: dict[str, Items] = {one.name: {} for one in sets}
    for one in sets:
        for name in one.tasks:
            learned_from, test, image_index = learn_from(one, name, training, settings.seed)
            if not is_enough(learned_from, test):
                log.warning("%s: too few images per class of `%s` for a linear probe", one.name, name)
                continue
            probe = linear_probe(learned_from.train, learned_from.validation, test, one.image_units[image_index])
            measured = _measured(one.name, name, probe.top1)
            block.setdefault(one.name, {})[name] = {
                **with_intervals({"measure": measured}, one.num_images, settings),
                "trained_on": learned_from.sources,
                "num_train": probe.num_train,
                "C": probe.strength,
                "num_test": len(image_index),
            }
            items[one.name][measured.measure.items] = probe.top1.values.astype(np.uint8)
            items[one.name][measured.measure.image_index] = image_index
    return block, items


def _measured(set_name: str, task: str, top1: Mean) -> Measured:
    measure = Measure(
        set_name,
        key=f"linear_probe_{task}_top1",
        label=f"linear probe {task} top-1",
        kind="linear_probe",
        value=top1.value,
        is_tested=True,
        items=f"linear_probe.{task}.correct",
        image_index=f"linear_probe.{task}.image_index",
        task=task,
    )
    return Measured(measure, top1)


def learn_from(
    one: EmbeddedSet, name: str, training: Mapping[str, TrainingData], seed: int
) -> tuple[TrainingData, Labelled, np.ndarray]:
    """Return what a task of a set is learned from, what is tested on, and the latter's numbers in the set.

    A set whose task has no training data is split: a quarter trains, a quarter chooses strengths, half is tested.
    """
    task = one.tasks[name]
    data = _labelled(one.raw_image_features, task.labels, one.keys)
    if name in training and training[name].classnames == task.classnames:
        learned_from, test = training[name], np.arange(len(data.labels))
    else:
        learned_from, test = _divided(data, task.classnames, one.name, seed)
    return learned_from, data.at(test), task.rows.numpy()[test]


def is_enough(learned_from: TrainingData, test: Labelled) -> bool:
    """Return whether there is something to learn, to choose strengths on and to test."""
    sizes = [len(part.labels) for part in (learned_from.train, learned_from.validation, test)]
    return min(sizes) > 0 and len(np.unique(learned_from.train.labels)) > 1


def _labelled(raw_features: torch.Tensor, labels: torch.Tensor, keys: Sequence[str]) -> Labelled:
    """Return unit features of the images that have a label, which is not −1."""
    rows = (labels >= 0).nonzero()[:, 0]
    return Labelled(l2_normalize(raw_features[rows]).numpy(), labels[rows].numpy(), np.array(keys, dtype=object)[rows])


def _divided(data: Labelled, classnames: tuple[str, ...], set_name: str, seed: int) -> tuple[TrainingData, np.ndarray]:
    """Return a quarter to train on, a quarter to choose the strength on, and the numbers of the other half."""
    both, test = stratified_halves(data.labels, seed)
    train, validation = (both[half] for half in stratified_halves(data.labels[both], seed))
    return TrainingData(classnames, data.at(train), data.at(validation), [f"half of {set_name}"]), test


def linear_probe(train: Labelled, validation: Labelled, test: Labelled, test_index: np.ndarray) -> Probe:
    """Measure the accuracy of `metrics.logistic_regression` on frozen features.

    The strength is the one of STRENGTHS with the best accuracy on `validation` after fitting `train` (the strongest
    regularisation among equals); the classifier is then fitted on both.

    Args:
        train: What the candidates are fitted on.
        validation: What the strength is chosen on.
        test: What the accuracy is measured on.
        test_index: [n] image of each test item, equal for copies, for the resampling.
    """
    accuracy = [
        logistic_regression(train.features, train.labels, strength=c).score(validation.features, validation.labels)
        for c in STRENGTHS
    ]
    strength = STRENGTHS[int(np.argmax(accuracy))]
    joined = train.joined(validation)
    probe = logistic_regression(joined.features, joined.labels, strength=strength)
    correct = probe.predict(test.features) == test.labels
    return Probe(Mean(correct.astype(np.float64), test_index), strength, len(joined.labels))


def stratified_halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the items into two halves with every class shared out evenly; the odd one of a class goes to the first.

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
