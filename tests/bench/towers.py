"""Other arithmetic in the towers, forward and backward: bf16, and batch norms folded into convolutions (a trial)."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline_lib import model
from pipeline_lib.model.features import Inputs
from pipeline_lib.refine.gradients import Encoders
from tests.bench.inputs import Report, alternate, caption

ROUNDS = 5


def bf16(report: Report, name: str, directory: Path, batch_size: int) -> None:
    """Both towers and each alone in bf16 against fp32, by CPU time; below 1 it does not pay."""
    clip = model.load(directory)
    inputs = _inputs(clip, batch_size)
    for which in ("both", "image", "text"):
        calls = {
            precision: partial(_pass, Encoders(student=clip, precision=precision, text_groups=4), inputs, which)
            for precision in ("fp32", "bf16")
        }
        seconds = alternate(ROUNDS, time.process_time, **calls)
        note = f"{seconds['fp32']:.2f} s against {seconds['bf16']:.2f} s of CPU, {batch_size} pairs"
        report(f"{name}_bf16_{which}", seconds["fp32"] / seconds["bf16"], 1.0, note)


def folding(report: Report, directory: Path, batch_size: int) -> None:
    """A convolutional image tower with its norms' fixed statistics folded into the convolutions, against plain."""
    plain, folded = model.load(directory), model.load(directory)
    _fold(folded)
    inputs = _inputs(plain, batch_size)
    gradients = []
    for clip in (plain, folded):
        _pass(Encoders(student=clip), inputs, "image")
        found = (p.grad for p in clip.module.visual.parameters() if p.grad is not None)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    difference = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    calls = {
        name: partial(_pass, Encoders(student=clip), inputs, "image")
        for name, clip in (("plain", plain), ("folded", folded))
    }
    seconds = alternate(ROUNDS, time.process_time, **calls)
    note = f"gradient differs by {difference:.0e}, {batch_size} images"
    report("folded_batch_norm_image", seconds["plain"] / seconds["folded"], 1.0, note)


def _inputs(clip: model.Clip, count: int) -> Inputs:
    """Random images, and captions of COCO's length."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 3, *clip.image_size), dtype=np.uint8)
    return Inputs(torch.from_numpy(images), clip.tokenize([caption(generator) for _ in range(count)]))


def _pass(encoders: Encoders, inputs: Inputs, which: str) -> None:
    """Forward and backward through both towers, or one; the other side is then a single row."""
    encoders.student.module.zero_grad()
    images, token_ids = inputs
    one_side = {"image": Inputs(images, token_ids[:1]), "text": Inputs(images[:1], token_ids)}
    features = encoders(one_side.get(which, inputs))
    encoders.send_back(features, [torch.ones_like(one) for one in features])


def _fold(clip: model.Clip) -> None:
    """Let each convolution do the scaling and shifting of the norm that takes its output, anew in each pass."""
    visual = clip.module.visual
    names = {layer: name for name, layer in visual.named_modules()}
    pairs = _convolutions_and_norms(clip)
    for convolution, norm in pairs:
        convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels), requires_grad=False)
        norm.forward = norm.act

    def encode_image(pixels: torch.Tensor) -> torch.Tensor:
        tensors = {}
        for convolution, norm in pairs:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            tensors[f"{names[convolution]}.weight"] = convolution.weight * scale.view(-1, 1, 1, 1)
            tensors[f"{names[convolution]}.bias"] = norm.bias - norm.running_mean * scale
        return torch.func.functional_call(visual, tensors, (clip.normalize(pixels),))

    clip.encode_image = encode_image


def _convolutions_and_norms(clip: model.Clip) -> list[tuple[nn.Module, nn.Module]]:
    """Pair each batch norm with the convolution whose output it takes, as one pass shows it."""
    made: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # the output with it, so that no other takes its number
    pairs: list[tuple[nn.Module, nn.Module]] = []
    hooks = []
    for layer in clip.module.visual.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(
                layer.register_forward_hook(lambda layer, _, output: made.update({id(output): (layer, output)}))
            )
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            hooks.append(layer.register_forward_pre_hook(lambda layer, x: pairs.append((made[id(x[0])][0], layer))))
    with torch.no_grad():
        clip.encode_image(torch.zeros(1, 3, *clip.image_size, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return pairs
