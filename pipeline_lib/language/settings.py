"""Section `language` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pipeline_lib.core.schema import AtLeastOne, Count, Positive, Range, ShareBelow1, block, section


@block
class Wanted:
    """An entry of `stages`, which has no keys."""


@block
class TuneSettings:
    """Tuning on pairs of texts that say the same, by LoRA on all linear layers, merged at the end."""

    pairs: str | None
    """A file of such texts, `{"captions": ["short", "long and more exact"]}` a line (JSON Lines, a JSON list, packed by
    gzip or not); lines with a caption of a held-out part or set are left out and counted. null: the captions of each
    image of part `refine`. DVC does not watch the file: after a change in it, `dvc repro -f language@make`.
    """

    epochs: AtLeastOne
    """Passes over the images (or lines) that have two captions that differ; each shows another pair."""

    batch_size: Annotated[int, Range(at_least=2)]
    """Pairs in an optimiser step: a query's negatives are the other pairs' documents, equal texts left out."""

    micro_batch: AtLeastOne | None
    """Pairs that are read at once, to save memory (null: all); the gradients stay those of the whole batch."""

    scale: Positive
    """Multiplier on cosines in the loss, which is fixed; LLM2CLIP has 50."""

    learning_rate: Positive
    """Learning rate of AdamW after the warm-up; it falls linearly to 0."""

    warmup_steps: Count
    """Number of steps over which the learning rate rises linearly."""

    rank: AtLeastOne
    """Rank of LoRA's matrices."""

    alpha: Positive
    """LoRA's alpha: its update is multiplied by alpha / rank."""

    dropout: ShareBelow1
    """Dropout before LoRA's matrices; the model's own is off."""

    precision: Literal["fp32", "tf32", "bf16"]
    """The arithmetic of the model (bf16: autocast; weights stay fp32, and are merged in it)."""

    seed: int
    """Seed of the order, of the pairs, of LoRA's start and of dropout."""


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
    """The folder of `source: folder`, with config.json, *.safetensors and tokenizer; code in it is not run. DVC does
    not watch it: after a change there, `dvc repro -f language@make`.
    """

    attention: Literal["own", "bidirectional"]
    """Which tokens see which: as the model was made (`own`), or all of them all, also in a decoder. That it is so is
    tried out at every load. A decoder that was not trained for it gives worse features.
    """

    pooling: Literal["mean", "last", "cls"]
    """How the tokens' hidden states become one vector: their mean, the last one of all, or the first. Special tokens
    are in the mean of an encoder and not in that of a decoder; the last one is the end-of-text token, if there is one.
    """

    max_length: AtLeastOne
    """Number of tokens that are read, those of the prompt and special ones included; longer texts are truncated, and
    counted.
    """

    prompt: str
    """What is said around a text, which stands for `{}`. Its own tokens are seen by the model and are in no mean."""

    tune: TuneSettings | None
    """Tuning on pairs of captions; null: the model as it is."""
