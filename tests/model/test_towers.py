"""pipeline_lib.model.towers: a tower's layout in memory is one whose gradients are right."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from pipeline_lib import model
from pipeline_lib.model.towers import faster_in_channels_last
from tests.tiny_model import write_tiny_timm_clip

GRADIENTS = """
import sys
from pathlib import Path
import torch
from pipeline_lib import model

def gradients(layout):
    clip = model.load(Path(sys.argv[1]), dtype=torch.float32)
    if layout is not None:
        clip.module.visual.to(memory_format=layout)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, *clip.image_size), dtype=torch.uint8)
    clip.encode_image(pixels).square().mean().backward()
    return [each.grad.contiguous() for each in clip.module.visual.parameters()]

plain = gradients(torch.contiguous_format)
for found, expected in zip(gradients(None), plain, strict=True):
    assert (found - expected).norm() <= 1e-3 * expected.norm() + 1e-7, (found - expected).norm() / expected.norm()
print("equal")
"""


def test_the_gradients_of_a_loaded_tower_are_those_of_the_plain_layout(tmp_path):
    """In a process of its own: a wrong layout of MobileOne's stem writes past its memory and kills it."""
    folder = write_tiny_timm_clip(tmp_path / "model", image_size=256, timm_model="mobileone_s0")
    done = subprocess.run([sys.executable, "-c", GRADIENTS, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-500:]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tf_efficientnet_lite0", True), ("resnet50", True), ("mobileone_s0", False), ("vit_tiny_patch16_224", False)],
)
def test_channels_are_last_in_convolutional_towers_that_are_safe(name, expected):
    """The default's tower keeps the layout of which its recorded bits are."""
    with torch.device("meta"):
        assert faster_in_channels_last(timm.create_model(name)) is expected


@pytest.mark.parametrize(
    ("convolution", "expected"),
    [
        (nn.Conv2d(3, 8, 1, 2), False),
        (nn.Conv2d(15, 8, 1, (1, 2)), False),
        (nn.Conv2d(16, 8, 1, 2), True),
        (nn.Conv2d(3, 8, 1, 1), True),
        (nn.Conv2d(3, 8, 3, 2), True),
    ],
)
def test_a_strided_pointwise_convolution_on_few_channels_decides(convolution, expected):
    assert faster_in_channels_last(nn.Sequential(convolution, nn.BatchNorm2d(8))) is expected


def test_a_loaded_convolutional_tower_has_its_channels_last(tmp_path):
    weight = model.load(write_tiny_timm_clip(tmp_path / "model")).module.visual.trunk.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
