"""The calibration error with a refitted temperature, against slow recomputation; what it is fitted on."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline_lib import metrics
from pipeline_lib.evaluate import calibration
from pipeline_lib.evaluate.probes import stratified_halves
from tests.evaluate.test_evaluate import make_set


def found(measured):
    return {one.measure.score: one.measure for one in measured}


def slow(one, temperatures):
    """Calibration error, with a temperature for each image."""
    task = one.tasks["kind"]
    classes = metrics.class_embeddings(task.raw_prompt_features["ensemble"])
    image = torch.nn.functional.normalize(one.raw_image_features, dim=1)
    probs = (one.logit_scale * image @ classes.T / torch.tensor(temperatures, dtype=torch.float32)[:, None]).softmax(1)
    confidence, prediction = probs.max(1)
    hits = (prediction == task.labels).double()
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        rows = (confidence > low) & (confidence <= high)
        if rows.any():
            error += abs(hits[rows].mean() - confidence[rows].double().mean()).item() * rows.double().mean().item()
    return error, prediction


def fitted(one, rows, classes):
    task = one.tasks["kind"]
    return metrics.refit_temperature(one.raw_image_features[rows], classes, task.labels[rows], one.logit_scale)


def test_the_selection_part_lends_the_temperature():
    one, selection = make_set(images=60), make_set(images=40, seed=1, name="val")
    classes = metrics.class_embeddings(one.tasks["kind"].raw_prompt_features["ensemble"])
    temperature = fitted(selection, torch.arange(40), classes)
    measures = found(calibration.recalibrated(one, selection, seed=0, base_scale=one.logit_scale))
    assert set(measures) == {"ece_refitted", "temperature"}
    assert measures["temperature"].value == pytest.approx(temperature)
    assert measures["temperature"].label == "zero-shot kind temperature, refitted on val"
    error, prediction = slow(one, [temperature] * 60)
    assert measures["ece_refitted"].value == pytest.approx(error, abs=1e-6)
    assert abs(temperature - 1) > 0.1
    assert torch.equal(prediction, slow(one, [1.0] * 60)[1]), "one temperature changes no prediction"
    assert [name for name, one in measures.items() if one.is_metric] == ["ece_refitted"]
    assert not any(one.is_headline or one.is_tested for one in measures.values())


@pytest.mark.parametrize("other", ["no task", "other classes"])
def test_elsewhere_each_half_is_measured_with_the_temperature_of_the_other(other):
    one, selection = make_set(images=60), make_set(images=40, seed=1, name="val", with_task=other != "no task")
    if selection.tasks:
        task = dataclasses.replace(selection.tasks["kind"], classnames=("w", "x", "y", "z"))
        selection = dataclasses.replace(selection, tasks={"kind": task})
    classes = metrics.class_embeddings(one.tasks["kind"].raw_prompt_features["ensemble"])
    halves = stratified_halves(one.tasks["kind"].labels.numpy(), 5)
    temperatures, of_half = np.empty(60), [fitted(one, half, classes) for half in halves]
    temperatures[halves[0]], temperatures[halves[1]] = of_half[1], of_half[0]
    measures = found(calibration.recalibrated(one, selection, seed=5))
    assert measures["ece_refitted"].value == pytest.approx(slow(one, temperatures)[0], abs=1e-6)
    assert measures["temperature"].value == pytest.approx(np.sqrt(np.prod(of_half)))
    assert measures["ece_refitted"].label.endswith("refitted on the other half")


def test_another_logit_scale_than_the_bases_gets_a_third_number():
    """A refinement that trains the scale: what the features alone did to the calibration."""
    one, selection = make_set(images=60), make_set(images=40, seed=1, name="val")
    trained = dataclasses.replace(one, logit_scale=2 * one.logit_scale)
    measures = found(calibration.recalibrated(trained, selection, seed=0, base_scale=one.logit_scale))
    plain = found(calibration.recalibrated(one, selection, seed=0))
    assert measures["ece_base_scale"].value == pytest.approx(slow(one, [1.0] * 60)[0], abs=1e-6)
    assert measures["temperature"].value == pytest.approx(2 * plain["temperature"].value, rel=1e-4)
    assert measures["ece_refitted"].value == pytest.approx(plain["ece_refitted"].value, abs=1e-4)


def test_a_single_image_has_no_other_half(caplog):
    one = make_set(images=1)
    assert calibration.recalibrated(one, make_set(with_task=False), seed=0) == []
    assert "eval: too few images of `kind` to refit a temperature" in caplog.text
