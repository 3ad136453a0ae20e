"""Pairs of captions of one image, or of texts of a file that say the same, such as a short and a long one.

Which two are drawn, and which of them is the query, is a pure function of (seed, epoch, key).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.core import shards
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import cut_length, embed_texts_by_length
from pipeline_lib.model.language import LanguageModel, text_lengths
from pipeline_lib.refine.sampling import caption_choice
from pipeline_lib.sources.jsonl import good_values
from pipeline_lib.sources.samples import encodable
from pipeline_lib.sources.tables import Rows

log = logging.getLogger(__name__)
EXPECTED = 'expected {"captions": ["short", "long and more exact"]}, two or more that differ'
NAMED = 3  # lines that the log names


@dataclass(frozen=True)
class Captions:
    """The different captions of N images (or lines of a file) that have at least two, as token ids [M, L]."""

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
    return _tokenized(((shards.text_digest(entry.key), entry.captions) for entry in part.entries()), language)


def read_pairs(path: Path, language: LanguageModel, held_out: Collection[str]) -> tuple[Captions, dict[str, float]]:
    """Read lines `{"captions": ["short", "long and more exact"]}` of a file; return them, and what became of the lines.

    Args:
        path: JSON Lines, or a JSON list, plain or packed by gzip; other keys of a line are not looked at.
        language: The model in whose tokens texts are equal.
        held_out: Captions that a model is judged by; a line with one of them is left out.

    Returns:
        The captions; `pair_lines`, `pair_lines_bad` and `pair_lines_held_out`, which are logged too.

    Raises:
        UserError: The file cannot be read, or no line is of this form.
    """
    rows, groups, known = Rows(path), list[tuple[bytes, list[str]]](), 0
    for _, value in good_values(rows, _is_group, EXPECTED):
        texts = [encodable(text.strip()) for text in value["captions"]]
        if any(text in held_out for text in texts):
            known += 1
        else:
            groups.append((shards.text_digest("\n".join(texts)), texts))
    rows.check()
    for name, reason in islice(rows.named(), NAMED):
        log.warning("language.tune.pairs: %s: left out: %s", name, reason)
    captions = _tokenized(groups, language)
    found = {"pair_lines": rows.read, "pair_lines_bad": len(rows.bad), "pair_lines_held_out": known}
    log.info("%s: %d lines, %d not of their form, %d with a caption that is held out", path, *found.values())
    return captions, {name: float(count) for name, count in found.items()}


def _tokenized(groups: Iterable[tuple[bytes, Sequence[str]]], language: LanguageModel) -> Captions:
    ids, digests, starts = list[torch.Tensor](), list[bytes](), [0]
    for digest, texts in groups:
        tokens = language.tokenize(list(dict.fromkeys(texts)))
        distinct = torch.stack([*{tuple(row.tolist()): row for row in tokens}.values()])
        if len(distinct) > 1:
            ids.append(distinct)
            digests.append(digest)
            starts.append(starts[-1] + len(distinct))
    none = torch.empty(0, language.reading.max_length, dtype=torch.int64)
    return Captions(torch.cat([none, *ids]), digests, np.array(starts))


def _is_group(value: Any) -> bool:
    texts: Any = value.get("captions") if isinstance(value, dict) else None
    are_texts = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    return are_texts and len({text.strip() for text in texts}) > 1


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
