"""The random numbers of an epoch are pure functions of (seed, epoch, key), and have the law they claim."""

import numpy as np
import pytest
import torch

from pipeline_lib.refine.sampling import Draws, caption_choice, epoch_order


def draws(keys, **changes):
    return Draws(**{"seed": 0, "epoch": 0, "step": 0, "progress": 0.0, "key_digests": keys, **changes})


KEYS = [bytes([i] * 16) for i in range(40)]


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    order = epoch_order(1000, seed=3, epoch=1)
    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, epoch_order(1000, seed=3, epoch=1))
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        assert not np.array_equal(order, epoch_order(1000, **other))


def test_caption_choice_is_uniform_and_changes_with_the_epoch():
    counts = np.zeros((2, 5))
    for epoch in range(2):
        for i in range(5000):
            counts[epoch, caption_choice(i.to_bytes(16, "big"), 5, seed=0, epoch=epoch)] += 1
    assert abs(counts - 1000).max() < 150  # five standard deviations
    same = [caption_choice(k, 5, seed=0, epoch=0) == caption_choice(k, 5, seed=0, epoch=1) for k in KEYS]
    assert not all(same)


def test_a_pair_keeps_its_vector_in_any_batch():
    """Batch, order and step do not matter; seed, epoch and key do."""
    whole = draws(KEYS).normal(8)[0]
    part = draws(KEYS[10:3:-1], step=7, progress=0.5).normal(8)[0]
    assert torch.equal(part, whole[list(range(10, 3, -1))])
    assert not torch.equal(draws(KEYS, epoch=1).normal(8)[0], whole)
    assert not torch.equal(draws(KEYS, seed=1).normal(8)[0], whole)


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_vectors_have_mean_zero_and_deviation_one(law):
    values = getattr(draws([i.to_bytes(16, "big") for i in range(400)]), law)(256, copies=2)
    assert values.shape == (2, 400, 256)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values[0] * values[1]).mean()) < 0.01  # the copies are independent
    if law == "uniform":
        assert values.abs().max() <= 3**0.5


def test_beta_depends_on_the_step():
    values = [draws(KEYS, step=step).beta(0.5) for step in range(2000)]
    assert len(set(values)) == 2000
    assert abs(np.mean(values) - 0.5) < 0.05
    assert abs(np.var(values) - 0.125) < 0.02  # Beta(1/2, 1/2)
