"""Pairs of captions of one image: who is the other of whom is a pure function of (seed, epoch, key)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.core import shards
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import cut_length, embed_texts_by_length
from pipeline_lib.model.language import LanguageModel, text_lengths
from pipeline_lib.refine.sampling import caption_choice


@dataclass(frozen=True)
class Captions:
    """The different captions of N images that have at least two, as token ids [M, L]."""

    token_ids: torch.Tensor
    key_digests: Sequence[bytes]  # N
    starts: np.ndarray  # N + 1: those of image i are rows starts[i] to starts[i + 1]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.key_digests)

    def draw(self, rows: np.ndarray, *, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and documents, ids [n, L'] each: two captions of each of the images `rows`, in this epoch."""
        drawn = [self._pair(int(row), seed, epoch) for row in rows]
        pair = [self.token_ids[torch.tensor(side)] for side in zip(*drawn, strict=True)]
        lengths = torch.cat([text_lengths(side) for side in pair])
        cut = cut_length(lengths, self.token_ids.shape[1], 1)
        return pair[0][:, :cut], pair[1][:, :cut]

    def _pair(self, row: int, seed: int, epoch: int) -> tuple[int, int]:
        first, count = int(self.starts[row]), int(self.starts[row + 1] - self.starts[row])
        key = self.key_digests[row]
        query = caption_choice(key, count, seed=seed, epoch=epoch)
        other = caption_choice(key + b"document", count - 1, seed=seed, epoch=epoch)
        return first + query, first + other + (other >= query)


class PairEncoder(Clip):
    """A language model on both sides of a dual encoder: of a pair of captions one stands for the image."""

    text_cut_refusal = None

    def __init__(self, language: LanguageModel, scale: float = 1.0) -> None:
        """Wrap `language`, whose weights are not copied; cosines are multiplied by `scale`."""
        self.language = language
        self.module = language.module
        self.embed_dim = language.width
        self._scale = scale

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.module.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """Return the fixed multiplier on cosines."""
        return torch.tensor(self._scale, device=self.device)

    def encode_image(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the raw features [B, W] of the captions [B, L] that stand for images."""
        return self.language.encode(token_ids)

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the raw features [B, W] of the other captions [B, L]."""
        return self.language.encode(token_ids)

    def text_lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Count the tokens of each text, int64 [N]."""
        return text_lengths(token_ids)


def read_captions(part: shards.Part, language: LanguageModel) -> Captions:
    """Read the captions of the images of a part that have two that differ, in their tokens.

    There may be none.
    """
    ids, digests, starts = list[torch.Tensor](), list[bytes](), [0]
    for entry in part.entries():
        tokens = language.tokenize(list(dict.fromkeys(entry.captions)))
        distinct = torch.stack([*{tuple(row.tolist()): row for row in tokens}.values()])
        if len(distinct) > 1:
            ids.append(distinct)
            digests.append(shards.text_digest(entry.key))
            starts.append(starts[-1] + len(distinct))
    none = torch.empty(0, language.reading.max_length, dtype=torch.int64)
    return Captions(torch.cat([none, *ids]), digests, np.array(starts))


def equal_rows(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Return which documents are no negatives of which pair, bool [n, n]: equal to its own document or its query."""
    _, text = torch.cat([queries, documents]).unique(dim=0, return_inverse=True)
    query, document = text.chunk(2)
    same = (document[:, None] == document) | (query[:, None] == document)
    return same.fill_diagonal_(False)


@torch.no_grad()
def measure_caption_retrieval(captions: Captions, language: LanguageModel, pass_size: int) -> float:
    """Return how often the first caption of an image finds its second one first among those of all images."""
    features = embed_texts_by_length(PairEncoder(language), captions.token_ids, pass_size, multiple=1)
    first = torch.tensor(captions.starts[:-1])
    return float(metrics.caption_pair_ranks(features, first, first + 1).hit_at(1).mean())
