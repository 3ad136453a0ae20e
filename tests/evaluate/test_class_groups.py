"""Rare and common classes: counts against regular expressions, the split against a slow loop, means against loops."""

import dataclasses
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline_lib.evaluate import class_groups, scoring
from pipeline_lib.evaluate.embedded import EmbeddedTask
from tests.evaluate.test_evaluate import SETTINGS, make_set

NAMES = (
    "cat",
    "Dog",
    "hot dog",
    "T-shirt",
    "maine coon",
    "coon cat",
    "Ärmel",
    "ice cream",
    "a",
    "dog house",
    "x9",
    "dog",
)
CAPTIONS = (
    "A cat and a dog", "hot dog stand, hot dog!", "the HOT DOG", "cats", "Maine Coon cat", "a t-shirt", "ärmel, ÄRMEL",
    "ice cream in a dog house", "hotdog concatenated", "x9x9 x9", "",
)  # fmt: skip


def test_counts_equal_those_of_a_regular_expression_for_each_name():
    expected = [
        sum(len(re.findall(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text, re.IGNORECASE)) for text in CAPTIONS)
        for name in NAMES
    ]
    assert class_groups.caption_counts(NAMES, CAPTIONS) == expected
    assert expected[NAMES.index("Dog")] == expected[NAMES.index("dog")] == 5


def test_a_name_without_letters_is_never_counted():
    assert class_groups.caption_counts(["?!", "b"], ["?! b"]) == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_the_rarest_fifth_and_its_equals_equal_a_slow_loop(seed):
    """Count by count, from the smallest, until a fifth is reached; the most frequent ones are never rare."""
    generator = np.random.default_rng(seed)
    counts = [*generator.integers(0, 4, size=generator.integers(1, 40)).tolist(), 4]
    wanted: set[int] = set()
    for count in range(4):
        if len(wanted) < max(1, len(counts) // 5):
            wanted |= {number for number, each in enumerate(counts) if each == count}
    assert set(np.flatnonzero(class_groups.rarest(counts))) == wanted


def part(captions):
    entries = [SimpleNamespace(captions=tuple(captions))]
    return SimpleNamespace(name="refine", num_captions=len(captions), entries=lambda: entries)


def with_classes(count, **options):
    """The set of `make_set` with so many classes, of which the images have labels in turn."""
    one = make_set(images=60, **options)
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randn(count, 1, 8, generator=generator)
    names = tuple(f"class{number}" for number in range(count))
    task = EmbeddedTask(names, torch.arange(60) % count, {"single": prompts, "ensemble": prompts})
    return dataclasses.replace(one, tasks={"kind": task})


def test_group_means_equal_loops_and_their_arrays_are_compared_in_pairs():
    one = with_classes(12)
    captions = [f"class{number}" for number in range(12) for _ in range(1 if number in (3, 7) else 4)]
    counts_of = class_groups.group_classes([one], part(captions))
    _, items = scoring.score(one, SETTINGS)
    items |= scoring.common_items(one)
    measured, arrays, facts = class_groups.grouped(one, items, counts_of)
    assert facts["kind"] == {"rare": ["class3", "class7"], "counts": [1 if n in (3, 7) else 4 for n in range(12)]}
    hits, labels = items["zero_shot.kind.ensemble.hit_at_1"], one.tasks["kind"].labels.numpy()
    for found, members in zip(measured, ((3, 7), set(range(12)) - {3, 7}), strict=True):
        assert found.measure.value == pytest.approx(np.mean([hits[labels == number].mean() for number in members]))
        assert set(arrays[found.measure.group]) == set(members)
        np.testing.assert_array_equal(arrays[found.measure.items], hits[arrays[found.measure.image_index]])
        assert not any((found.measure.is_headline, found.measure.is_tested, found.measure.is_metric))
    copied = dataclasses.replace(one, image_hashes=tuple(str(number // 12 % 2) for number in range(60)))
    again, stored, _ = class_groups.grouped(copied, items, counts_of)
    for found, before in zip(again, measured, strict=True):
        np.testing.assert_array_equal(found.mean.image_index, copied.image_units[before.mean.image_index])
        np.testing.assert_array_equal(stored[found.measure.image_index], before.mean.image_index)
    labels = [found.measure.label for found in measured]
    assert labels == ["zero-shot kind, rare classes", "zero-shot kind, common classes"]


def test_what_cannot_be_divided_is_left_out(caplog):
    one = with_classes(12)
    with caplog.at_level(logging.INFO):
        assert class_groups.group_classes([one], part(["nothing that is a class"])) == {}
    assert "`kind`: the captions of `refine` name each class 0 times" in caplog.text
    assert class_groups.group_classes([with_classes(9)], part(["class1"])) == {}
    assert class_groups.group_classes([one], part([])) == {}
    assert class_groups.group_classes([one], None) == {}
    assert class_groups.grouped(one, {}, {}) == ([], {}, {})


def test_tasks_are_counted_each_as_alone_in_one_pass_over_the_captions():
    one, read = with_classes(12), []
    names = (*NAMES[:4], *(f"class{number} of" for number in range(8)))
    tasks = {**one.tasks, "other": dataclasses.replace(one.tasks["kind"], classnames=names)}
    captions = [*CAPTIONS, "class1 of class2", "class1"]
    [entry] = part(captions).entries()
    training = SimpleNamespace(name="refine", num_captions=1, entries=lambda: read.append(1) or [entry])
    found = class_groups.group_classes([dataclasses.replace(one, tasks=tasks)], training)
    alone = {task.classnames: class_groups.caption_counts(task.classnames, captions) for task in tasks.values()}
    assert found == alone
    assert len(read) == 1


def test_a_group_without_images_is_said(caplog):
    one = with_classes(12)
    task = one.tasks["kind"]
    one = dataclasses.replace(one, tasks={"kind": dataclasses.replace(task, labels=task.labels.clamp(min=2))})
    _, items = scoring.score(one, SETTINGS)
    items |= scoring.common_items(one)
    with caplog.at_level(logging.INFO):
        counts_of = class_groups.group_classes([one], part([f"class{number}" for number in range(2, 12)]))
        measured, _, facts = class_groups.grouped(one, items, counts_of)
    assert facts["kind"]["rare"] == ["class0", "class1"]
    assert [found.measure.score for found in measured] == ["common_classes"]
    assert "eval: no image of a rare class of `kind`" in caplog.text
