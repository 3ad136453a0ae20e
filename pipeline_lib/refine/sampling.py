"""Everything random in an epoch, as pure functions: order of (seed, epoch), captions and vectors of (seed, epoch, key).

Nothing here depends on worker count, process count, batch size, interruptions or the sample's place in the epoch, so
that one process equals many and a resumed run equals an uninterrupted one. A key enters as its 16-byte BLAKE2b digest.
The vectors come from numpy's counter-based Philox generator, one stream per (seed, epoch, key).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def _stream(purpose: str, seed: int, epoch: int, item: bytes = b"") -> bytes:
    """Return 16 bytes that name one random stream."""
    text = f"{purpose}:{seed}:{epoch}:".encode()
    return hashlib.blake2b(text + item, digest_size=16).digest()


def _generator(stream: bytes) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int.from_bytes(stream, "little")))


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the samples for one epoch: a permutation, int64 [num_samples]."""
    return _generator(_stream("order", seed, epoch)).permutation(num_samples)


def caption_choice(key_digest: bytes, num_captions: int, *, seed: int, epoch: int) -> int:
    """Draw which of its captions a sample shows in this epoch: a number in [0, num_captions)."""
    return int.from_bytes(_stream("caption", seed, epoch, key_digest)[:8], "little") % num_captions


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one step, for the recipes. B pairs of the global batch, in its order."""

    seed: int
    epoch: int
    step: int  # optimiser steps before this one, over all epochs
    progress: float  # step / total steps, in [0, 1)
    key_digests: Sequence[bytes]  # B x 16 bytes
    teacher_mean: torch.Tensor | None = None  # [D] of the teacher's raw features, both modalities
    teacher_std: torch.Tensor | None = None  # [D]

    def normal(self, width: int, *, copies: int = 1) -> torch.Tensor:
        """Draw standard normal [copies, B, width], fp32 on the CPU; a pair's rows depend on (seed, epoch, key) only."""
        return self._rows("normal", width, copies)

    def uniform(self, width: int, *, copies: int = 1) -> torch.Tensor:
        """Draw uniform with mean 0 and standard deviation 1 (±√3), [copies, B, width], fp32 on the CPU."""
        return (self._rows("uniform", width, copies) * 2 - 1) * 3**0.5

    def _rows(self, law: str, width: int, copies: int) -> torch.Tensor:
        rows = np.empty((len(self.key_digests), copies, width), dtype=np.float32)
        for row, key_digest in zip(rows, self.key_digests, strict=True):
            generator = _generator(_stream("vector", self.seed, self.epoch, key_digest))
            draw = generator.standard_normal if law == "normal" else generator.random
            draw(dtype=np.float32, out=row)
        return torch.from_numpy(rows).transpose(0, 1)

    def beta(self, a: float) -> float:
        """Draw once from Beta(a, a) per step."""
        return float(_generator(_stream("beta", self.seed, self.epoch, str(self.step).encode())).beta(a, a))
