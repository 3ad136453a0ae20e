"""An image tower joined with a frozen language model: LLM2CLIP's kind of dual encoder (arXiv 2411.04997).

Its text side is *language model → pooling → adapter*. The adapter is trained and stands with the image tower in the
folder's weights; the language model never changes, so it is a folder of its own inside (`language/`), and a model that
is given its features for texts does without it: training reads them from the cache. It is loaded when the first token
ids come, and refused there if it is not the one that the folder was joined with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline_lib.core.errors import UserError
from pipeline_lib.model.adapter import Adapter, Shape
from pipeline_lib.model.clip import Clip
from pipeline_lib.model.language import LanguageModel, load_language, text_lengths

TEXT_SIDE = "text_side"  # a key of open_clip_config.json
LANGUAGE = "language"  # the folder inside
ORIGIN = ("source", "license")  # facts of a language model that decide nothing
ADAPTER = "text.adapter."  # the names of its weights begin so
OTHER_SIDE = ("custom_text", "multimodal_cfg")  # keys of a configuration that are about the text tower, CoCa's decoder
NO_TEXT = {"vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # the smallest text tower that open_clip makes


class JoinedModel(nn.Module):
    """What `Clip` asks of open_clip's models, with an adapter for a text tower."""

    def __init__(self, visual: nn.Module, adapter: nn.Module, language: Callable[[], LanguageModel]) -> None:
        super().__init__()
        self.visual = visual
        self.text = nn.ModuleDict({"adapter": adapter})
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias: nn.Parameter | None = None
        self.language = language

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return the features [B, D] of normalised images [B, 3, H, W]."""
        found = self.visual(images)
        features = found[0] if isinstance(found, tuple) else found  # CoCa's tower gives its tokens too
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, texts: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return the features [B, D] of token ids [B, L], or of the language model's features [B, W]."""
        found = texts if texts.is_floating_point() else self.language().encode(texts)
        features = self.text["adapter"](found.to(self.logit_scale.dtype))
        return F.normalize(features, dim=-1) if normalize else features


class JoinedClip(Clip):
    """A loaded model whose texts go through a language model. W is the width of the language model's features."""

    module: JoinedModel
    text_cut_refusal = None  # padding is masked, and stands on the right

    def __init__(self, visual: nn.Module, config: Mapping[str, Any], directory: Path, language: Path) -> None:
        """Join `visual` with the language model in the folder `language`; the adapter has random weights.

        `config` says what the adapter is, and which language model belongs to it.
        """
        text_side = config[TEXT_SIDE]
        self.language_facts: dict[str, Any] = text_side[LANGUAGE]  # as `LanguageModel.facts`
        self.language_directory = language
        width, embed_dim = self.language_facts["width"], config["model_cfg"]["embed_dim"]
        shape = text_side["adapter"]
        adapter = nn.Identity() if shape is None else Adapter(width, embed_dim, Shape(**shape))
        super().__init__(JoinedModel(visual, adapter, self.language), config, directory)
        self.context_length: int = self.language_facts["max_length"]
        self._language: LanguageModel | None = None

    def language(self) -> LanguageModel:
        """Load the language model, on the first call, to where the weights are.

        Raises:
            UserError: It is missing, or not the one that the adapter was made for.
        """
        if self._language is None:
            found = load_language(self.language_directory, device=self.device)
            check_language(self.language_directory, found.facts(), self.language_facts)
            self._language = found
        return self._language

    @property
    def tokenizer(self) -> Callable[..., torch.Tensor]:
        """Return what makes texts token ids."""
        return self._tokenize

    def _tokenize(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        return self.language().tokenize([texts] if isinstance(texts, str) else list(texts))

    def truncated(self, texts: Sequence[str], token_ids: torch.Tensor) -> torch.Tensor:
        """Return which texts have more tokens than the model reads, bool [N]; `token_ids` [N, L] are what it reads."""
        return self.language().truncated(texts, token_ids)

    def encode_text(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the raw features [B, D] of token ids [B, L'], or of the language model's features [B, W].

        Token ids may be cut anywhere behind the longest text.
        """
        return self.module.encode_text(texts)

    def text_lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Count the tokens of each text, int64 [N], of token ids [N, L]."""
        return text_lengths(token_ids)


def join(
    base: Clip,
    language: Path,
    facts: Mapping[str, Any],
    shape: Shape | None = None,
    *,
    seed: int = 0,
    logit_scale: float | None = None,
) -> JoinedClip:
    """Join the image tower of `base`, which is not copied, with the language model in the folder `language`.

    Args:
        base: Whose image tower, preprocessing, width and (without `logit_scale`) logit scale are taken.
        language: A folder that `save_language` wrote; it is not read before a text comes.
        facts: What its manifest says of it: `LanguageModel.facts`, and where it comes from.
        shape: Of the adapter, whose weights are a pure function of `seed`; None: texts get the language model's own
            features [B, W].
        seed: See `shape`.
        logit_scale: Multiplier on cosines to begin with: the space of the language model is not yet aligned.
    """
    config = copy.deepcopy(dict(base.config))
    config["model_cfg"] = {key: value for key, value in config["model_cfg"].items() if key not in OTHER_SIDE}
    config["model_cfg"]["text_cfg"] = {**NO_TEXT, "context_length": facts["max_length"]}
    config["model_cfg"]["vision_cfg"].pop("output_tokens", None)
    origin = {key: facts[key] for key in ORIGIN if key in facts}
    computed = {key: value for key, value in facts.items() if key not in ORIGIN}
    config[TEXT_SIDE] = {"adapter": None if shape is None else asdict(shape), LANGUAGE: computed, "origin": origin}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        joined = JoinedClip(base.module.visual, config, base.directory, language)
    own = base.module.logit_scale.detach()
    joined.module.logit_scale.data = own.clone() if logit_scale is None else torch.full_like(own, math.log(logit_scale))
    if base.module.logit_bias is not None:
        joined.module.logit_bias = nn.Parameter(base.module.logit_bias.detach().clone())
    joined.module.eval().to(base.device)
    joined.facts = {**base.facts, LANGUAGE: dict(facts), "tokenizer_digest": facts["tokenizer_digest"]}
    return joined


def check_language(directory: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse another language model than the one that belongs to an adapter.

    Raises:
        UserError: They differ; says in what.
    """
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        raise UserError(
            f"{directory}: not the language model that the adapter was trained for: {', '.join(differing)} "
            f"{'differs' if len(differing) == 1 else 'differ'}; put the folder back as it was, or refine again"
        )
