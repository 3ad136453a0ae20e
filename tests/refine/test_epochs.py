"""What a step sees: exactly-once seeded epochs, whatever the workers and processes."""

import collections
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline_lib.core.distributed import World
from pipeline_lib.refine.epochs import Plan, read_batch, read_steps
from tests.cached_project import open_cached


def plan(**changes):
    return Plan(
        **{"rows": np.arange(0, 110, 2), "batch_size": 8, "epochs": 3, "keep_last": False, "seed": 0, **changes}
    )


@pytest.mark.parametrize("keep_last", [True, False])
def test_an_epoch_visits_every_row_once_the_dropped_tail_aside(keep_last):
    found = plan(keep_last=keep_last)
    tails = []
    for epoch in range(3):
        seen = np.concatenate(found.batches(epoch))
        assert len(set(seen)) == len(seen) == (55 if keep_last else 48)
        assert set(seen) <= set(found.rows)
        tails.append(frozenset(set(found.rows) - set(seen)))
    assert found.num_dropped == (0 if keep_last else 7)
    assert found.num_steps == 3 * (7 if keep_last else 6)
    assert len(set(tails)) == (1 if keep_last else 3)  # other ones are dropped each epoch
    assert replace(found, max_steps=4).num_steps == 4
    assert min(map(len, found.batches(0))) == found.smallest_batch == (7 if keep_last else 8)
    assert replace(found, max_steps=6).smallest_batch == 8  # ends before the last batch


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_sequence_of_batches_does_not_depend_on_the_workers(cached, workers):
    part, _, _ = open_cached(cached)
    found = Plan(rows=part.valid_rows, batch_size=8, epochs=1, keep_last=True, seed=3)
    options = {"world": World(), "pin_memory": False}
    reference = list(read_steps(part, found, step=0, num_workers=0, **options))
    steps = list(read_steps(part, found, step=0, num_workers=workers, **options))
    first = read_batch(part, found.batches(0)[0], seed=3, epoch=0, world=World())
    assert len(steps) == found.num_steps
    for a, b in zip(steps, reference, strict=True):
        assert np.array_equal(a.rows, b.rows)
        assert all(torch.equal(x, y) for x, y in zip((*a.inputs, *a.teacher_features), (*b.inputs, *b.teacher_features), strict=True))  # fmt: skip  # noqa: E501
    assert np.array_equal(first.rows, steps[0].rows)
    assert all(map(torch.equal, first.inputs, steps[0].inputs))
    resumed = list(read_steps(part, found, step=2, num_workers=workers, **options))
    assert [list(s.rows) for s in resumed] == [list(s.rows) for s in reference[2:]]


def test_two_processes_see_the_halves_of_one_process_batch(cached):
    part, _, _ = open_cached(cached)
    found = Plan(rows=part.valid_rows, batch_size=7, epochs=1, keep_last=True, seed=3)
    options = {"step": 0, "num_workers": 0, "pin_memory": False}
    whole = list(read_steps(part, found, world=World(), **options))
    halves = [list(read_steps(part, found, world=World(rank, 2), **options)) for rank in range(2)]
    for all_rows, first, second in zip(whole, *halves, strict=True):
        for name in ("images", "texts"):
            joined = torch.cat([getattr(first.inputs, name), getattr(second.inputs, name)])
            assert torch.equal(joined, getattr(all_rows.inputs, name))
        assert torch.equal(first.teacher_features[0], all_rows.teacher_features[0])


def test_captions_change_between_epochs_and_all_are_used(cached):
    part, _, _ = open_cached(cached)
    seen = collections.defaultdict(set)
    found = Plan(rows=part.valid_rows, batch_size=8, epochs=12, keep_last=True, seed=0)
    for step in range(0, found.num_steps, found.steps_per_epoch):
        for data in read_steps(part, found, step=step, world=World(), num_workers=0, pin_memory=False):
            for row, ids in zip(data.rows, data.inputs.texts, strict=True):
                seen[int(row)].add(tuple(ids.tolist()))
    counts = [len(seen[row]) for row in seen]
    assert len(seen) == len(part)
    assert np.mean(counts) > 0.9 * part.num_captions.mean()
