"""Zero-shot classification: accuracies with what they are without a model, calibration, and each class by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate.embedded import Directions, EmbeddedSet
from pipeline_lib.evaluate.measured import Block, Items, Measured
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

SCORES = {"top1": "top-1", "mean_per_class": "class mean", "top5": "top-5"}  # and how each reads
PROMPTS = {"ensemble": "", "single": ", 1 prompt", "imagenet": ", ImageNet's prompts"}


def zero_shot(directions: Directions, embedded: EmbeddedSet, name: str) -> tuple[list[Measured], Block, Items]:
    """Return the measures of a task, the ensemble's first; its accuracy by class; its per-item arrays."""
    task = embedded.tasks[name]
    labels, image_index = task.labels[task.rows], embedded.image_units[task.rows.numpy()]
    image = directions.image if len(task.rows) == len(task.labels) else directions.image[task.rows]
    measured: list[Measured] = []
    classes: Block = {}
    items: Items = {}
    for prompt in sorted(task.raw_prompt_features):
        found = metrics.classify(
            image, directions.classes(task.raw_prompt_features[prompt]), labels, embedded.logit_scale
        )
        hits = found.ranks.hit_at(1)
        means = {
            "top1": Mean(hits.numpy(), image_index),
            "mean_per_class": Mean(hits.numpy(), image_index, labels.numpy()),
            "top5": Mean(found.ranks.hit_at(5).numpy(), image_index),
        }
        without = without_a_model(labels, len(task.classnames))
        measured += [
            _accuracy(embedded.name, name, prompt, score, mean, without[score]) for score, mean in means.items()
        ]
        error = metrics.expected_calibration_error(found.confidence, hits).item()
        measured.append(_calibration(embedded.name, name, prompt, error))
        arrays = f"zero_shot.{name}.{prompt}"
        items[f"{arrays}.hit_at_1"] = hits.numpy().astype(np.float32)
        items[f"{arrays}.prediction"] = found.prediction.numpy()
        if prompt == "ensemble":
            classes = _per_class(task.classnames, labels, hits, found.prediction)
    return measured, classes, items


class WithoutModel(NamedTuple):
    """What an accuracy is without any model: by lot, and by always the same answer, the best one."""

    chance: float
    commonest: float | None


def without_a_model(labels: torch.Tensor, num_classes: int) -> dict[str, WithoutModel]:
    """Return what each score of a classification into K classes is without any model; labels [n] in [0, K).

    >>> without_a_model(torch.tensor([0, 0, 0, 2]), 4)["top1"]  # by lot, and always class 0
    WithoutModel(chance=0.25, commonest=0.75)
    """
    counts = torch.bincount(labels, minlength=num_classes)
    present = int((counts > 0).sum())
    return {
        "top1": WithoutModel(1 / num_classes, counts.max().item() / len(labels)),
        "mean_per_class": WithoutModel(1 / num_classes, 1 / present),
        "top5": WithoutModel(min(5, num_classes) / num_classes, None),
    }


def _accuracy(set_name: str, task: str, prompt: str, score: str, mean: Mean, without: WithoutModel) -> Measured:
    """Return a zero-shot accuracy. Models are compared by top-1 and class means.

    The ensemble's top-1 is a headline, and the class mean must move with it: a model that gives the common classes
    more often gains the one and not the other.
    """
    of_ensemble, is_top1, is_class_mean = prompt == "ensemble", score == "top1", mean.group is not None
    is_compared = is_top1 or (is_class_mean and of_ensemble)
    measure = Measure(
        set_name,
        key=_zero_shot_key(task, prompt, score),
        label=f"zero-shot {task} {SCORES[score]}{PROMPTS.get(prompt, f', {prompt}')}",
        kind="zero_shot",
        value=mean.value,
        is_headline=of_ensemble and is_top1,
        is_metric=of_ensemble or is_top1,
        is_tested=of_ensemble and is_top1,
        chance=without.chance,
        commonest=without.commonest,
        agrees_with=_zero_shot_key(task, prompt, "mean_per_class") if of_ensemble and is_top1 else "",
        items=f"zero_shot.{task}.{prompt}.hit_at_1" if is_compared else "",
        image_index=f"zero_shot.{task}.image_index",
        group=f"zero_shot.{task}.label" if is_class_mean else "",
        task=task,
        prompt=prompt,
        score=score,
    )
    return Measured(measure, mean)


def _calibration(set_name: str, task: str, prompt: str, error: float) -> Measured:
    key, label = _zero_shot_key(task, prompt, "ece"), f"zero-shot {task} calibration error ({prompt})"
    of_ensemble = prompt == "ensemble"
    return Measured(
        Measure(
            set_name, key, label, "calibration", error, is_metric=of_ensemble, task=task, prompt=prompt, score="ece"
        )
    )


def _zero_shot_key(task: str, prompt: str, score: str) -> str:
    return f"zero_shot_{task}_{score}" if prompt == "ensemble" else f"zero_shot_{task}_{prompt}_{score}"


def _per_class(classnames: Sequence[str], labels: torch.Tensor, hits: torch.Tensor, prediction: torch.Tensor) -> Block:
    """Return each class's accuracy, worst first, the most frequent confusions, and how answers spread over classes.

    Classes of one name are numbered.
    """
    times = Counter(classnames)
    names = [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(classnames)]
    accuracy = metrics.class_means(hits, labels, len(classnames)).tolist()
    counts = torch.bincount(labels, minlength=len(classnames)).tolist()
    order = sorted((c for c in range(len(counts)) if counts[c]), key=lambda c: (accuracy[c], c))
    answers = torch.bincount(prediction, minlength=len(classnames))
    favourite = int(answers.argmax())
    return {
        "answers": {
            "num_classes": len(classnames),
            "num_present": len(order),
            "num_given": int((answers > 0).sum()),
            "favourite": names[favourite],
            "favourite_share": answers[favourite].item() / len(labels),
            "favourite_true_share": counts[favourite] / len(labels),
        },
        "per_class": [{"class": names[c], "top1": accuracy[c], "num_images": counts[c]} for c in order],
        "confusions": [
            {"true": names[true], "predicted": names[predicted], "count": count}
            for true, predicted, count in metrics.confusions(prediction, labels)
        ],
    }
