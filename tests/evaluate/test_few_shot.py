"""Few-shot curves: draws by keys alone, GDA against scikit-learn's LDA, points against slow recomputation."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pipeline_lib import metrics
from pipeline_lib.evaluate import few_shot, probes
from pipeline_lib.evaluate.probes import Labelled
from pipeline_lib.evaluate.settings import FewShotSettings
from pipeline_lib.results.measure import Measure
from tests.evaluate.test_evaluate import SETTINGS, make_set

WITH_CURVES = dataclasses.replace(SETTINGS, few_shot=FewShotSettings(shots=(4, 1, 2, 50), draws=3))


def labelled(per_class, classes=5, width=12, seed=0):
    """Unit rows around a centre per class, in mixed order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(classes), per_class))
    rows = generator.normal(size=(classes, width))[labels] + generator.normal(size=(len(labels), width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Labelled(rows, labels, np.array([f"image {i}" for i in range(len(labels))], dtype=object))


@pytest.mark.parametrize(("shots", "classes", "width"), [(2, 5, 12), (16, 3, 8), (3, 20, 40)])
def test_gda_is_scikit_learns_lda_where_every_class_has_as_many_images(shots, classes, width):
    data = labelled(shots, classes, width)
    weights, biases = few_shot.gda(data.features, data.labels, classes)
    count = shots * classes
    shrinkage = width / (width + count - 1)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(classes, 1 / classes))
    lda.fit(data.features, data.labels)
    times = (count - 1) / count * shrinkage
    np.testing.assert_allclose(weights, times * lda.coef_, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(biases, times * (lda.intercept_ - np.log(1 / classes)), rtol=1e-10, atol=1e-10)


def test_gda_gives_a_class_without_images_the_mean_of_the_others():
    data = labelled(4, 3)
    few, with_two_more = (few_shot.gda(data.features, 2 * data.labels, count) for count in (5, 6))
    present = few_shot.gda(data.features, data.labels, 3)
    for found, of_present in zip(few, present, strict=True):
        np.testing.assert_array_equal(found[::2], of_present)
        np.testing.assert_allclose(found[[1, 3]], [of_present.mean(0)] * 2)
    np.testing.assert_array_equal(with_two_more[0][5], few[0][1])


@pytest.mark.parametrize("copies", [1, 3])
def test_without_spread_within_the_classes_gda_says_nothing(copies):
    """One image of each class, or copies of it, in which rounding leaves some."""
    data = labelled(1)
    weights, biases = few_shot.gda(np.repeat(data.features, copies, 0), np.repeat(data.labels, copies), 5)
    assert not weights.any()
    assert not biases.any()


def test_hits_equal_a_loop_and_ties_share():
    data = labelled(3)
    weights = np.stack([data.features[data.labels == number].mean(0) for number in range(5)])
    weights[4] = weights[3]
    expected = []
    for row, label in zip(data.features, data.labels, strict=True):
        logits = [float(row @ weight) for weight in weights[:4]]
        logits.append(logits[3])
        winners = [k for k in range(5) if logits[k] == max(logits)]
        expected.append((label in winners) / len(winners))
    assert few_shot.classifier_hits(weights, 0.0, data).tolist() == expected
    assert {0.5, 1.0} <= set(expected)


# ---- draws ----


def drawn(data, shots, **which):
    return set(data.keys[few_shot.draw_places(data, **which) < shots])


def test_draws_are_nested_and_take_what_there_is():
    data = labelled(9).at(np.arange(40))
    sizes = np.bincount(data.labels)
    before = set()
    for shots in (1, 2, 4, 8, 16):
        places = few_shot.draw_places(data, seed=0, draw=1)
        assert np.bincount(data.labels[places < shots]).tolist() == np.minimum(sizes, shots).tolist()
        assert before < (before := drawn(data, shots, seed=0, draw=1)) or shots == 16
    assert before == set(data.keys)


def test_a_draw_is_a_function_of_seed_draw_and_keys_alone():
    """Other features, another order, more images of other classes: the same images are drawn."""
    data = labelled(9)
    moved = data.at(np.random.default_rng(3).permutation(len(data.keys)))._replace(features=np.zeros((45, 2)))
    some = data.at(np.flatnonzero(data.labels != 2))
    here = drawn(data, 3, seed=0, draw=0)
    assert drawn(moved, 3, seed=0, draw=0) == here
    assert drawn(some, 3, seed=0, draw=0) == here - set(data.keys[data.labels == 2])
    assert len({frozenset(drawn(data, 3, seed=seed, draw=draw)) for seed in (0, 1) for draw in (0, 1)}) == 4


# ---- curves ----


@pytest.fixture(scope="module")
def curves():
    """A set of four classes, of which half is learned from, with its block, its arrays and its measures."""
    one = make_set(images=64, width=16)
    block, items = few_shot.few_shot_sets([one], {}, WITH_CURVES)
    block, items = block["eval"]["kind"], items["eval"]
    measures = {(m.method, m.shots): m for m in (Measure.read("eval", stored) for stored in block["measures"])}
    return one, block, items, measures


def test_copies_of_an_image_are_one_in_the_intervals_of_what_is_learned():
    """Of 16 pictures four times each the intervals are wider where that is known; the stored images stay the rows."""
    one = make_set(images=64, width=16)
    labels = torch.from_numpy(np.random.default_rng(0).integers(4, size=16)).repeat(4)  # at random: some are wrong
    task = dataclasses.replace(one.tasks["kind"], labels=labels)
    one = dataclasses.replace(one, raw_image_features=one.raw_image_features[:16].repeat(4, 1), tasks={"kind": task})
    copied = dataclasses.replace(one, image_hashes=tuple(str(number % 16) for number in range(64)))
    for read in (probes.probe_sets, few_shot.few_shot_sets):
        (alone, items), (copies, again) = (read([each], {}, WITH_CURVES) for each in (one, copied))
        for name, rows in items["eval"].items():
            np.testing.assert_array_equal(again["eval"][name], rows)
        widths = [np.diff(_intervals(block["eval"]["kind"])) for block in (alone, copies)]
        assert (widths[1] > 1.2 * widths[0]).mean() > 0.8


def _intervals(block):
    stored = block.get("measures") or [block["measure"]]
    return np.array([Measure.read("eval", one).interval[1:] for one in stored])


def test_points_equal_slow_recomputation(curves):
    """By scikit-learn's LDA, which has as many images of each class here, and its logistic regression."""
    one, block, items, measures = curves
    learned_from, test, index = probes.learn_from(one, "kind", {}, WITH_CURVES.seed)
    pool = learned_from.train.joined(learned_from.validation)
    prompts = one.logit_scale * metrics.class_embeddings(one.tasks["kind"].raw_prompt_features["ensemble"]).numpy()
    by_gda, by_probe = np.zeros(len(index)), np.zeros(len(index))
    for draw in range(3):
        train = pool.at(np.flatnonzero(few_shot.draw_places(pool, seed=0, draw=draw) < 4))
        shrinkage = 16 / (16 + 15)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(4, 1 / 4))
        lda.fit(train.features.astype(float), train.labels)
        logits = test.features @ prompts.T + 15 / 16 * shrinkage * lda.decision_function(test.features)
        by_gda += (logits.argmax(1) == test.labels) / 3
        probe = metrics.logistic_regression(train.features, train.labels)
        by_probe += (probe.predict(test.features) == test.labels) / 3
    np.testing.assert_allclose(items["few_shot.kind.gda.4"], by_gda, atol=1e-6)
    np.testing.assert_allclose(items["few_shot.kind.probe.4"], by_probe, atol=1e-6)
    assert items["few_shot.kind.image_index"].tolist() == index.tolist()
    assert not set(pool.keys) & {one.keys[i] for i in index}, "learned from other images than tested on"
    assert measures["gda", 4].value == pytest.approx(by_gda.mean())
    assert block["num_test"] == len(index)
    assert block["drawn_from"] == ["half of eval"]


def test_one_shot_is_zero_shot_and_zero_shot_is_that_of_the_prompts(curves, monkeypatch):
    one, _, items, measures = curves
    zero_shot, index = items["few_shot.kind.zero_shot.0"], items["few_shot.kind.image_index"]
    np.testing.assert_array_equal(items["few_shot.kind.gda.1"], zero_shot)
    classes = metrics.class_embeddings(one.tasks["kind"].raw_prompt_features["ensemble"])
    labels = one.tasks["kind"].labels[index]
    found = metrics.classify(one.raw_image_features[index], classes, labels, one.logit_scale)
    np.testing.assert_array_equal(zero_shot, (found.prediction == labels).numpy())
    assert measures["gda", 2].value != measures["gda", 1].value
    monkeypatch.setattr(few_shot, "ALPHA", 0.0)
    _, without = few_shot.few_shot_sets([one], {}, WITH_CURVES)
    for shots in (1, 2, 4, 50):
        np.testing.assert_array_equal(without["eval"][f"few_shot.kind.gda.{shots}"], zero_shot)


def test_measures_say_what_they_are(curves):
    _, _, items, measures = curves
    shots = [("zero_shot", 0), *((method, n) for n in (1, 2, 4, 50) for method in ("gda", "probe"))]
    assert list(measures) == shots
    assert [key for key, one in measures.items() if one.is_metric] == [("gda", 50)]
    assert not any(one.is_headline or one.is_tested for one in measures.values())
    for one in measures.values():
        assert one.low <= one.value <= one.high
        assert items[one.items].mean() == pytest.approx(one.value)
        assert len(items[one.items]) == len(items[one.image_index])


def test_classes_with_too_few_images_are_counted():
    """Of 32 images that are learned from, 8 in each class; one class has a single image, another none."""
    one = make_set(images=64, width=16)
    task = one.tasks["kind"]
    labels = task.labels.clone()
    labels[labels == 3] = -1
    labels[torch.arange(64)[labels == 2][1:]] = -1
    one = dataclasses.replace(one, tasks={"kind": dataclasses.replace(task, labels=labels)})
    block, _ = few_shot.few_shot_sets([one], {}, WITH_CURVES)
    found = block["eval"]["kind"]
    assert (found["num_classes"], found["absent"]) == (4, 1)
    assert found["short"] == {"1": 1, "2": 2, "4": 2, "50": 4}


@pytest.mark.parametrize("setting", [None, FewShotSettings(shots=(), draws=3)])
def test_curves_can_be_left_out(setting):
    settings = dataclasses.replace(SETTINGS, few_shot=setting)
    assert few_shot.few_shot_sets([make_set()], {}, settings) == ({}, {"eval": {}})


def test_a_task_with_too_few_images_has_no_curves(caplog):
    block, items = few_shot.few_shot_sets([make_set(images=3)], {}, WITH_CURVES)
    assert (block, items) == ({}, {"eval": {}})
    assert "eval: too few images per class of `kind` for few-shot curves" in caplog.text
