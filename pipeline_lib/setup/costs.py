"""Memory and time that refining a model takes, calculated from one pass of its towers without numbers in them.

The towers run on torch's `meta` device: shapes only. torch counts the operations of the forward pass, and what the
backward pass keeps; a backward pass is two forward ones. How fast this machine is, a large matrix product tells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import did_you_mean

BYTES_PER_WEIGHT = 16  # the weight, its gradient, AdamW's two means, in fp32
PROGRAM = 1_000_000_000  # bytes of a process with torch and open_clip loaded, and what else it keeps
SIZE = 2048  # of the matrices, whose product tells the speed


@dataclass(frozen=True)
class Cost:
    """What a model takes, in fp32."""

    num_weights: int
    image_flops: float  # of one image forward
    text_flops: float  # of one caption of full length forward
    bytes_per_pair: int  # that are kept of a pair's forward pass for the backward one

    def memory(self, micro_batch: int) -> int:
        """Return the bytes that a step takes with `micro_batch` pairs at once."""
        return PROGRAM + BYTES_PER_WEIGHT * self.num_weights + self.bytes_per_pair * micro_batch

    def flops(self, num_pairs: int, num_captions: int, num_evaluated: int) -> float:
        """Return the operations of teacher cache, one epoch, and evaluation of two models on so many images."""
        pair = self.image_flops + self.text_flops
        teacher = num_pairs * self.image_flops + num_captions * self.text_flops
        return teacher + 3 * num_pairs * pair + 2 * num_evaluated * pair

    def largest_micro_batch(self, room: float) -> int:
        """Return the largest power of two of pairs for which `room` bytes are enough; at least 1."""
        size = 1
        while self.memory(2 * size) <= room and size < 1 << 14:
            size *= 2
        return size


def cost_of(architecture: str) -> Cost:
    """Calculate what an open_clip architecture takes, in its own forward passes (`model.pooled` leaves out a part).

    Raises:
        UserError: open_clip has none of this name, or it does not run without numbers (Hugging Face text towers).
    """
    if architecture not in open_clip.list_models():
        raise UserError(f"--model: open_clip has no `{architecture}`{_hint(architecture)}")
    logging.disable(logging.WARNING)  # open_clip warns that there are no weights
    try:
        with torch.device("meta"):
            model: Any = open_clip.create_model(architecture, pretrained=None, device="meta").eval()
            size = model.visual.image_size
            image = torch.zeros(1, 3, *(size if isinstance(size, tuple) else (size, size)))
            texts = torch.zeros(1, model.context_length, dtype=torch.int64)
        own = {weight.untyped_storage()._cdata for weight in model.parameters()}
        image_flops, image_bytes = _measure(lambda: model.encode_image(image), own)
        text_flops, text_bytes = _measure(lambda: model.encode_text(texts), own)
    except Exception as error:  # whatever a tower does that needs numbers
        raise UserError(f"{architecture}: its cost cannot be calculated ({type(error).__name__})") from error
    finally:
        logging.disable(logging.NOTSET)
    return Cost(sum(weight.numel() for weight in model.parameters()), image_flops, text_flops, image_bytes + text_bytes)


def _hint(architecture: str) -> str:
    hint = did_you_mean(architecture, open_clip.list_models())
    return hint if len(hint) < 200 else "; `open_clip.list_models()` has their names"


def _measure(forward: Callable[[], Any], own: set[int]) -> tuple[float, int]:
    """Return the operations of a pass, and the bytes that it keeps beside the weights `own`."""
    kept, alive = dict[int, int](), list[torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # or another would get its number
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        forward()
    return counter.get_total_flops(), sum(size for number, size in kept.items() if number not in own)


def speed(device: torch.device) -> float:
    """Measure the operations a second of a large fp32 matrix product, the best of five."""
    left = torch.ones(SIZE, SIZE, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        float((left @ left)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * SIZE**3 / best


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
