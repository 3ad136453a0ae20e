"""Cached and online teachers are one and the same."""

import torch

from pipeline_lib import losses
from pipeline_lib.model.embed import embed_images, embed_texts
from tests.cached_project import open_cached


def test_cached_equals_online_bitwise_in_features_loss_and_gradient(cached):
    """The same function and chunk size: the HyCD loss and its gradient do not know where the teacher came from."""
    part, clip, _ = open_cached(cached)
    rows = part.valid_rows[[5, 0, 17, 9, 2]]
    captions = [0, 1, 0, 1, 1]
    inputs = part.read_inputs(rows, captions)
    cached_pair = part.read_features(rows, captions)
    online_pair = embed_images(clip, inputs.images, 8), embed_texts(clip, inputs.texts, 8)
    found = []
    for pair in (cached_pair, online_pair):
        student = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = losses.hycd_loss(student, pair[0] @ pair[1].T)
        found.append((*pair, loss.detach(), torch.autograd.grad(loss, student)[0]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
