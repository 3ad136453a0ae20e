"""Few-shot curves: what a few labelled images of each class add to the prompts, drawn alike for base and refined.

    zero_shot   z = logit_scale · cos(f, t), t the class directions of the prompts' ensemble: where the curves begin
    gda         z + α (W f + b), see `gda`: the prompts' log-probabilities and the images' log-likelihoods, added
    probe       `metrics.logistic_regression` on the shots alone, of its default strength

Nothing is chosen on other images: α is 1 for every set and model. Chosen on the few images that somebody with so few
would hold out, α differs between base and refined by luck alone, and that moves their difference more than refinement
does. Published curves choose it for each set, often on all of its validation images, and with few shots lie higher.

A draw is a function of the seed and the samples' keys alone, so that both models learn from the same images and are
compared on each test image. Fewer shots are a part of more (`draw_places`). Of a class with fewer images than shots all
are taken. They are drawn from what the linear probe is trained on, see `probes.learn_from`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline_lib.core.shards import text_digest
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.measured import Block, Items, Measured, with_intervals
from pipeline_lib.evaluate.probes import Labelled, TrainingData, is_enough, learn_from
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.metrics import class_embeddings, logistic_regression
from pipeline_lib.results.measure import FEW_SHOT, Measure
from pipeline_lib.results.statistics import Mean

log = logging.getLogger(__name__)
ALPHA = 1.0
NO_SPREAD = 1e-20  # of unit rows: less is what rounding leaves of equal ones
Hits = dict[tuple[str, int], np.ndarray]  # by method and shots: [n] of the test images


def few_shot_sets(
    sets: Sequence[EmbeddedSet], training: Mapping[str, TrainingData], settings: EvaluateSettings
) -> tuple[Block, dict[str, Items]]:
    """Measure the curves of every task of every set; none without `settings.shots`.

    Returns:
        {set: {task: {"measures", "drawn_from": parts, "num_test", "num_classes", "absent": classes without an image,
        "short": {shots: classes with fewer images}}}}, and per-item arrays by set.
    """
    block: Block = {}
    items: dict[str, Items] = {one.name: {} for one in sets}
    for one in sets if settings.shots else []:
        for name in one.tasks:
            learned_from, test, image_index = learn_from(one, name, training, settings.seed)
            if not is_enough(learned_from, test):
                log.warning("%s: too few images per class of `%s` for few-shot curves", one.name, name)
                continue
            pool = learned_from.train.joined(learned_from.validation)
            with threadpool_limits(limits=1):  # the same bits whatever their number, and faster where it is small
                hits = _curves(_prompts(one, name), pool, test, settings)
            units = one.image_units[image_index]
            measured = [_measured(one.name, name, point, Mean(h, units), settings) for point, h in hits.items()]
            block.setdefault(one.name, {})[name] = {
                **with_intervals({"measures": measured}, one.num_images, settings),
                "drawn_from": learned_from.sources,
                "num_test": len(image_index),
                **_missing(pool, len(learned_from.classnames), settings),
            }
            items[one.name] |= _items(measured, image_index)
    return block, items


def _items(measured: Sequence[Measured], image_index: np.ndarray) -> Items:
    """Return the arrays that the points are means of, and the images of them all."""
    arrays = {one.measure.items: one.mean.values.astype(np.float32) for one in measured if one.mean is not None}
    return arrays | {one.measure.image_index: image_index for one in measured}


def _prompts(one: EmbeddedSet, task: str) -> np.ndarray:
    """Return the zero-shot classifier as weights [K, D]: class directions times the logit scale."""
    classes = class_embeddings(one.tasks[task].raw_prompt_features["ensemble"])
    return one.logit_scale * classes.numpy().astype(np.float64)


def _curves(prompts: np.ndarray, pool: Labelled, test: Labelled, settings: EvaluateSettings) -> Hits:
    """Return each test image's hits at every point of the curves, as means over the draws."""
    hits: Hits = {("zero_shot", 0): classifier_hits(prompts, 0.0, test)}
    draws = range(settings.few_shot.draws if settings.few_shot else 0)
    places = [draw_places(pool, seed=settings.seed, draw=draw) for draw in draws]
    for shots in settings.shots:
        drawn = [pool.at(np.flatnonzero(place < shots)) for place in places]
        hits["gda", shots] = np.mean([_gda_hits(prompts, train, test) for train in drawn], axis=0)
        hits["probe", shots] = np.mean([_probe_hits(train, test) for train in drawn], axis=0)
    return hits


def _missing(pool: Labelled, num_classes: int, settings: EvaluateSettings) -> Block:
    """Count the classes that have fewer images than shots, and those that have none."""
    sizes = np.bincount(pool.labels, minlength=num_classes)
    short = {str(shots): int((sizes < shots).sum()) for shots in settings.shots}
    return {"num_classes": num_classes, "absent": int((sizes == 0).sum()), "short": short}


def _measured(set_name: str, task: str, point: tuple[str, int], mean: Mean, settings: EvaluateSettings) -> Measured:
    """Return a point of a curve; GDA with the most shots stands in DVC's and MLflow's tables."""
    method, shots = point
    measure = Measure(
        set_name,
        key=f"few_shot_{task}_{method}_{shots}",
        label=f"few-shot {task}, {FEW_SHOT[method]}, {shots} {'shot' if shots == 1 else 'shots'}",
        kind="few_shot",
        value=mean.value,
        is_metric=point == ("gda", max(settings.shots)),
        items=f"few_shot.{task}.{method}.{shots}",
        image_index=f"few_shot.{task}.image_index",
        task=task,
        method=method,
        shots=shots,
    )
    return Measured(measure, mean)


def draw_places(data: Labelled, *, seed: int, draw: int) -> np.ndarray:
    """Shuffle the images of each class: the place of each in a draw, [n] integers, 0 the first of its class.

    A function of seed, draw and the images' keys alone. The first of each class are a draw of one shot, the first two
    one of two: fewer shots are a part of more.
    """
    digests = [text_digest(f"{seed}:{draw}:{key}") for key in data.keys]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    by_class = order[np.argsort(data.labels[order], kind="stable")]
    labels = data.labels[by_class]
    places = np.empty(len(order), dtype=np.int64)
    places[by_class] = np.arange(len(order)) - np.searchsorted(labels, labels)
    return places


def gda(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit Gaussian discriminant analysis, classes as likely and of one shrunk covariance: weights [K, D], biases [K].

    Σ⁻¹ = D ((N − 1) Σ̂ + tr(Σ̂) I)⁺, W_k = Σ⁻¹ μ_k, b_k = −½ μ_kᵀ Σ⁻¹ μ_k, with Σ̂ the covariance within the classes
    over N − 1; log(1/K), which all share, is left out. With as many images of each class this is scikit-learn's
    `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=D/(D + N − 1))` with equal priors, times
    (N − 1)/N · D/(D + N − 1).
    One image of each class shows no spread within it: Σ̂ = 0, so W = b = 0, and zero-shot stands alone. A class without
    images takes the mean of the others' weights and biases, and so neither gains nor loses on the whole.
    Source: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024 (arXiv
    2402.04087).

    Args:
        features: [N, D].
        labels: [N] integers in [0, K).
        num_classes: K.
    """
    rows, width = features.astype(np.float64), features.shape[1]
    present, class_of = np.unique(labels, return_inverse=True)
    means = np.stack([rows[class_of == number].mean(0) for number in range(len(present))])
    spread = rows - means[class_of]
    scatter = spread.T @ spread  # (N − 1) Σ̂
    weights, biases = np.zeros((num_classes, width)), np.zeros(num_classes)
    if (trace := np.trace(scatter)) > NO_SPREAD:
        shrunk = scatter + trace / (len(rows) - 1) * np.eye(width)
        found = width * np.linalg.solve(shrunk, means.T).T
        weights[:], weights[present] = found.mean(0), found
        found = -0.5 * (means * found).sum(1)
        biases[:], biases[present] = found.mean(), found
    return weights, biases


def _gda_hits(prompts: np.ndarray, train: Labelled, test: Labelled) -> np.ndarray:
    weights, biases = gda(train.features, train.labels, len(prompts))
    return classifier_hits(prompts + ALPHA * weights, ALPHA * biases, test)


def _probe_hits(train: Labelled, test: Labelled) -> np.ndarray:
    return logistic_regression(train.features, train.labels).predict(test.features) == test.labels


def classifier_hits(weights: np.ndarray, biases: np.ndarray | float, data: Labelled) -> np.ndarray:
    """Return 1 where the true class has the largest of the logits W f + b, its share where others have it too: [n]."""
    logits = data.features.astype(np.float64) @ weights.T + biases
    is_first = logits == logits.max(1, keepdims=True)
    return is_first[np.arange(len(logits)), data.labels] / is_first.sum(1)
