"""One loaded dual encoder: images and captions to raw features, its tokenizer, its logit scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.hf_model
import open_clip.tokenizer
import open_clip.transformer
import torch
from torch import nn

from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model import pooled
from pipeline_lib.model.preprocess import CONVENTIONS, Preprocess, preprocess_config

SCALARS = ("logit_scale", "logit_bias")  # parameters that the loss itself uses, outside the towers
_POOLERS_THAT_IGNORE_PADDING = {"MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler"}  # MaxPooler raises
_TOWERS_THAT_MASK_PADDING = {"bert", "roberta", "xlm-roberta", "mt5"}


class Clip:
    """A loaded model with its preprocessing and tokenizer. B images or captions, D = `embed_dim`."""

    def __init__(self, module: nn.Module, config: Mapping[str, Any], directory: Path) -> None:
        """Wrap `module`; use `load` or `create`."""
        self.module: Any = module  # an nn.Module; Any because open_clip's towers are told apart by their attributes
        self.config = config
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self.preprocess = Preprocess(preprocess_config(module, config.get("preprocess_cfg") or {}))
        self.context_length: int = config["model_cfg"]["text_cfg"].get("context_length", 77)
        self.embed_dim: int = config["model_cfg"]["embed_dim"]

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the input."""
        return self.preprocess.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the channel means that `normalize` subtracts."""
        return tuple(self.preprocess.config["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Return the channel deviations that `normalize` divides by."""
        return tuple(self.preprocess.config["std"])

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.module.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        return self.module.logit_scale.dtype

    @property
    def logit_scale(self) -> torch.Tensor:
        """Return the scalar multiplier on cosines, already exponentiated; gradients reach the parameter."""
        return self.module.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> torch.Tensor | None:
        """Return the scalar added to the logits (SigLIP), or None."""
        return None if self.module.logit_bias is None else self.module.logit_bias.reshape(())

    @property
    def text_tower(self) -> Any:
        """Return the text tower: CustomTextCLIP and CoCa keep it in `.text`, CLIP holds its parts itself."""
        return getattr(self.module, "text", self.module)

    def decode(self, image_bytes: bytes, max_pixels: int) -> np.ndarray:
        """Decode an image as `Preprocess.decode` does."""
        return self.preprocess.decode(image_bytes, max_pixels)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize pixels as `Preprocess.normalize` does, in the type of the weights."""
        return self.preprocess.normalize(pixels, self.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        """Return open_clip's tokenizer for this directory.

        By transformers' conventions it gets texts as they are; open_clip mends their encoding and HTML entities first.

        Raises:
            UserError: It needs a package that is not there, as SigLIP's published ones do.
        """
        try:
            found = open_clip.get_tokenizer(f"local-dir:{self.directory.resolve()}")
        except ImportError as error:
            raise lacks_package(self.directory, error) from error
        if CONVENTIONS in self.preprocess.config and isinstance(found, open_clip.tokenizer.HFTokenizer):
            found.clean_fn = str
        return found

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """Return the token ids of N captions, int64 [N, context_length], padded, too long ones truncated."""
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        return self.tokenizer(texts, context_length=self.context_length)

    def truncated(self, texts: Sequence[str], token_ids: torch.Tensor) -> torch.Tensor:
        """Return which texts have more tokens than the model reads, bool [N]; `token_ids` [N, L] are what it reads.

        Asks the tokenizer for one token more and looks whether that is padding; only of texts that fill the context.
        An empty text shows where the padding stands: after it, before it, or (CLIPS) before a last token.
        """
        empty = self.tokenizer([""], context_length=self.context_length)[0]
        found = (token_ids[:, -2:] != empty[-1]).any(dim=1)  # two, for SigLIP pads with its end-of-text token
        rows = found.nonzero()[:, 0]
        if len(rows):
            longer = self.tokenizer([texts[row] for row in rows.tolist()], context_length=self.context_length + 1)
            extra = self.context_length if empty[-1] == empty[-2] else 0 if empty[0] == empty[1] else -2
            without = torch.cat([longer[:, :extra], longer[:, extra:][:, 1:]], dim=1)
            found[rows] = (without != token_ids[rows]).any(dim=1)
        return found

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the raw features [B, D] of uint8 images [B, 3, H, W]."""
        images, visual = self.normalize(pixels), self.module.visual
        if pooled.pools_class_token(visual):
            return pooled.class_token_features(visual, images)
        return self.module.encode_image(images, normalize=False)

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the raw features [B, D] of token ids [B, L], L <= context_length.

        Cut ids (L < context_length) give the features of the full ids to rounding if every caption's `text_lengths`
        is at most L.

        Raises:
            ValueError: The ids are too long, or cut where that changes the result (`text_cut_refusal`).
        """
        length = token_ids.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens, the model takes {self.context_length}")
        if length < self.context_length and self.text_cut_refusal:
            raise ValueError(f"token ids cannot be cut to {length}: {self.text_cut_refusal}")
        if isinstance(self.text_tower, open_clip.hf_model.HFTextEncoder) or self.text_cut_refusal:
            return self.module.encode_text(token_ids, normalize=False)
        return pooled.end_of_text_features(self.text_tower, token_ids, self.text_lengths(token_ids) - 1)

    @property
    def text_pooling(self) -> tuple[str, int | None]:
        """Return how a native text tower pools, and at which token id where it does so at one."""
        text = self.text_tower
        if text is self.module:  # open_clip.CLIP
            return text.text_pool_type, text.text_eos_id
        return text.pool_type, text.eos_id

    @cached_property
    def text_cut_refusal(self) -> str | None:
        """Say why token ids must keep their full length; None where cutting after the longest caption is exact.

        Exact: a causal mask with pooling at the end-of-text token and no class embedding, or a Hugging Face tower that
        masks padding (on the right) with a pooler that ignores it.
        """
        text = self.text_tower
        if isinstance(text, open_clip.hf_model.HFTextEncoder):
            return self._hf_cut_refusal(text)
        if type(text) not in (open_clip.CLIP, open_clip.transformer.TextTransformer):
            return f"unknown text tower {type(text).__name__}"
        if getattr(text, "cls_emb", None) is not None:
            return "a class token stands after the padding (embed_cls)"
        if text.attn_mask is None:
            return "the attention is not causal (no_causal_mask), so padding reaches the caption's tokens"
        if self.text_pooling[0] not in ("argmax", "eos"):
            return f"pooling `{self.text_pooling[0]}` is not at the end-of-text token"
        return None

    def _hf_cut_refusal(self, text: Any) -> str | None:
        kind, pooler = text.config.model_type, type(text.pooler).__name__
        if kind not in _TOWERS_THAT_MASK_PADDING:
            return f"text tower type `{kind}` is not known to ignore padding"
        if pooler not in _POOLERS_THAT_IGNORE_PADDING:
            return f"pooler {pooler} is not known to ignore padding"
        if self.tokenizer.tokenizer_mode or self.tokenizer.strip_sep_token:
            return "the tokenizer writes tokens after the padding or padding inside the caption"
        inner = self.tokenizer.tokenizer
        if inner.padding_side != "right" or inner.pad_token_id != text.config.pad_token_id:
            return "the tokenizer does not pad on the right with the text tower's own padding token"
        return None

    def text_lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Count the tokens that each caption needs, end-of-text included, int64 [N]; L where no cut is exact.

        For token ids [N, L]; "a cat" needs 4 of OpenAI's: start, a, cat, end.
        """
        length = token_ids.shape[1]
        if self.text_cut_refusal or not len(token_ids):
            return torch.full((len(token_ids),), length, dtype=torch.int64, device=token_ids.device)
        if isinstance(self.text_tower, open_clip.hf_model.HFTextEncoder):
            real = (token_ids != self.text_tower.config.pad_token_id).long()
            return length - real.flip(1).argmax(dim=1)
        pool_type, eos_id = self.text_pooling
        if pool_type == "argmax":
            return token_ids.argmax(dim=1) + 1
        return token_ids.eq(eos_id or 0).int().argmax(dim=1) + 1


def lacks_package(folder: Path, error: ImportError) -> UserError:
    """Say that the tokenizer in `folder` needs a package that is not there."""
    what = first_lines(error, 1)
    return UserError(f"{folder}: its tokenizer cannot be read ({what}); pip install sentencepiece")
