"""Costs that are calculated are those of models that run."""

import open_clip
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline_lib.core.errors import UserError
from pipeline_lib.setup import costs


def test_weights_and_operations_are_those_of_a_pass_with_numbers():
    cost = costs.cost_of("ViT-S-32-alt")
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None).eval()
    assert cost.num_weights == sum(weight.numel() for weight in model.parameters())
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count what others do on a CPU
        with FlopCounterMode(display=False) as image:
            model.encode_image(torch.zeros(1, 3, 224, 224))
        with FlopCounterMode(display=False) as text:
            model.encode_text(torch.zeros(1, 77, dtype=torch.int64))
    assert (cost.image_flops, cost.text_flops) == (image.get_total_flops(), text.get_total_flops())


def test_what_a_vit_keeps_is_counted_by_hand():
    """A lower bound: of each block of L tokens the normalised input twice, q, k, v, attention's output, the MLP's."""
    cost = costs.cost_of("ViT-B-32")
    image, text = 12 * 50 * 768 * (2 + 3 + 1 + 4), 12 * 77 * 512 * (2 + 3 + 1 + 4)
    assert 4 * (image + text) < cost.bytes_per_pair < 2.5 * 4 * (image + text)


def test_memory_grows_with_the_batch_and_the_largest_one_fits():
    cost = costs.Cost(num_weights=10**8, image_flops=1.0, text_flops=1.0, bytes_per_pair=10**8)
    room = costs.PROGRAM + 16 * 10**8 + 40 * 10**8
    assert cost.largest_micro_batch(room) == 32
    assert cost.memory(32) <= room < cost.memory(64)
    assert cost.largest_micro_batch(0) == 1


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UserError, match=r"^--model: open_clip has no `ViT-B-23`; did you mean `ViT-B-32`"):
        costs.cost_of("ViT-B-23")
