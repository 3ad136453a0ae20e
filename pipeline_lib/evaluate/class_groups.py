"""Zero-shot accuracy by groups of classes: those that the training captions seldom name, and the others.

Refinement may teach what the captions speak of often and lose what they seldom mention; a mean over all classes hides
that. The counts are over the part that a model is refined on, so base and refined have the same groups.
Source: the head and the tail of Parashar et al., "The Neglected Tails in Vision-Language Models", CVPR 2024 (arXiv
2401.12425), who estimate how often a concept occurs by its names in the captions, and call the rarest fifth the tail.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline_lib.core.shards import Part
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.measured import Block, Items, Measured
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean

log = logging.getLogger(__name__)
RARE_SHARE = 0.2  # of the classes
MIN_CLASSES = 10  # of a task that is divided
GROUPS = ("rare", "common")
Words = tuple[str, ...]  # of a class name


def caption_counts(classnames: Sequence[str], captions: Iterable[str]) -> list[int]:
    """Count how often each class is named in the captions: whole words, one after the other, in whatever case.

    Everything but letters and digits separates words.

    >>> caption_counts(["hot dog", "dog", "cat_face"], ["A hot-dog and a DOG.", "Dogs, cats", "my cat face"])
    [1, 2, 1]
    """
    names = [_words(name) for name in classnames]
    found = _occurrences(set(names), captions)
    return [found[name] for name in names]


def _occurrences(names: set[Words], captions: Iterable[str]) -> Counter[Words]:
    wanted = names - {()}
    lengths = {len(name) for name in wanted}
    found: Counter[Words] = Counter()
    for caption in captions:
        words = _words(caption)
        for length in lengths:
            found.update(filter(wanted.__contains__, zip(*(words[start:] for start in range(length)), strict=False)))
    return found


def _words(text: str) -> Words:
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def rarest(counts: Sequence[int]) -> np.ndarray:
    """Return which classes are rare: the fifth with the smallest counts, and those that are named as seldom; bool [K].

    Where all but some are named equally often, these are the rare ones.

    >>> rarest([3, 0, 5, 0, 9]).tolist(), rarest([1, 1, 0, 1, 1, 1, 1, 1, 1, 1]).tolist().index(True)
    ([False, True, False, True, False], 2)
    """
    array = np.array(counts)
    last = np.sort(array)[max(1, int(RARE_SHARE * len(array))) - 1]
    return array < last if last == array.max() else array <= last


def group_classes(sets: Sequence[EmbeddedSet], training: Part | None) -> dict[tuple[str, ...], list[int]]:
    """Count the names of every list of classes that can be divided, in the captions of the training part.

    Returns:
        Counts by class names. Left out, and logged: lists of fewer than MIN_CLASSES, and those whose classes are all
        named equally often, such as never. Empty without captions.
    """
    if training is None or not training.num_captions:
        return {}
    tasks = {task.classnames: name for one in sets for name, task in one.tasks.items()}
    tasks = {classnames: name for classnames, name in tasks.items() if len(classnames) >= MIN_CLASSES}
    names = {_words(name) for classnames in tasks for name in classnames}
    captions = (caption for entry in training.entries() for caption in entry.captions)
    times_named = _occurrences(names, captions if tasks else ())  # of all tasks in one pass: there may be many captions
    found = {}
    for classnames, name in tasks.items():
        counts = [times_named[_words(classname)] for classname in classnames]
        if min(counts) == max(counts):
            times = f"the captions of `{training.name}` name each class {counts[0]} times"
            log.info("`%s`: %s, so there are no rare and common ones", name, times)
        else:
            found[classnames] = counts
    return found


def grouped(
    one: EmbeddedSet, items: Items, counts_of: Mapping[tuple[str, ...], Sequence[int]]
) -> tuple[list[Measured], Items, Block]:
    """Measure the mean of class accuracies over the rare and over the common classes of every task of a set.

    Args:
        one: The set.
        items: Its per-item arrays, see `scoring.score` and `scoring.common_items`.
        counts_of: What `group_classes` gave.

    Returns:
        Measures, further per-item arrays, and {task: {"rare": class names, "counts": of each class, in their order}}.
    """
    measured: list[Measured] = []
    arrays: Items = {}
    facts: Block = {}
    for name, task in one.tasks.items():
        if (counts := counts_of.get(task.classnames)) is None:
            continue
        is_rare, labels = rarest(counts), items[f"zero_shot.{name}.label"]
        rare = [classname for classname, each in zip(task.classnames, is_rare, strict=True) if each]
        facts[name] = {"rare": rare, "counts": list(counts)}
        for group, of_group in zip(GROUPS, (is_rare, ~is_rare), strict=True):
            rows = np.flatnonzero(of_group[labels])
            if not len(rows):
                log.info("%s: no image of a %s class of `%s`", one.name, group, name)
                continue
            hits = items[f"zero_shot.{name}.ensemble.hit_at_1"][rows]
            image_index = items[f"zero_shot.{name}.image_index"][rows]
            mean = Mean(hits, one.image_units[image_index], labels[rows])
            measured.append(_measured(one.name, name, group, mean))
            prefix = f"zero_shot.{name}.{group}_classes"
            arrays[f"{prefix}.hit_at_1"], arrays[f"{prefix}.image_index"] = hits, image_index
            arrays[f"{prefix}.label"] = labels[rows]
    return measured, arrays, facts


def _measured(set_name: str, task: str, group: str, mean: Mean) -> Measured:
    prefix = f"zero_shot.{task}.{group}_classes"
    measure = Measure(
        set_name,
        key=f"zero_shot_{task}_{group}_classes",
        label=f"zero-shot {task}, {group} classes",
        kind="zero_shot",
        value=mean.value,
        is_metric=False,
        items=f"{prefix}.hit_at_1",
        image_index=f"{prefix}.image_index",
        group=f"{prefix}.label",
        task=task,
        prompt="ensemble",
        score=f"{group}_classes",
    )
    return Measured(measure, mean)
