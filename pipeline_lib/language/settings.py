"""Section `language` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, block, section


@block
class Wanted:
    """An entry of `stages`, which has no keys."""


@section("language")
class LanguageSettings:
    """A language model that reads the captions in place of the base's text tower; it never changes in `refine`."""

    stages: Mapping[str, Wanted]
    """`{}`: there is no such model, and no stage `language`. `{make: {}}` adds the stage; `paths.text` must then be
    `paths.language`, and `refine.adapter` a block.
    """

    source: Literal["minilm", "smollm2", "folder"]
    """Where the model comes from: all-MiniLM-L6-v2 (an encoder) or SmolLM2-135M-Instruct (a decoder) from installed
    packages, or a folder of transformers at `path`.
    """

    path: str | None
    """The folder of `source: folder`, with config.json, *.safetensors and tokenizer; code in it is not run."""

    attention: Literal["own", "bidirectional"]
    """Which tokens see which: as the model was made (`own`), or all of them all, also in a decoder. That it is so is
    tried out at every load. A decoder that was not trained for it gives worse features.
    """

    pooling: Literal["mean", "last", "cls"]
    """How the tokens' hidden states become one vector: their mean, the last one, or the first position. Special tokens
    are in the mean of an encoder and not in that of a decoder.
    """

    max_length: AtLeastOne
    """Number of tokens that are read, those of the prompt and special ones included; longer texts are truncated, and
    counted.
    """

    prompt: str
    """What is said around a text, which stands for `{}`. Its own tokens are seen by the model and not pooled."""
