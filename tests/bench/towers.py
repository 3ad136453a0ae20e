"""Other arithmetic in the towers, forward and backward: bf16."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

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
