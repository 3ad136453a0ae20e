"""Section `base` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Count, NotNegative, Positive, ShareBelow1, block, section


@block
class DemoSettings:
    """The small dual encoder joined from two published towers; its heads are trained on part `base`."""

    image_size: AtLeastOne
    """Side of the square input, in pixels."""

    embed_dim: AtLeastOne
    """Width of the space that both heads project into."""

    epochs: AtLeastOne
    """Passes over part `base`."""

    batch_size: AtLeastOne
    """Pairs per step."""

    learning_rate: Positive
    """Of AdamW at the start; half a cosine to 0 follows."""

    weight_decay: NotNegative
    """Of AdamW, on the heads; none on the temperature."""

    dropout: ShareBelow1
    """Share of the tower features set to 0 while the heads are trained."""

    seed: Count
    """Of the heads' first weights, the order, the captions drawn and the dropout."""


@section("base")
class BaseSettings:
    """Where the pre-trained model comes from."""

    source: Literal["demo", "open_clip", "checkpoint", "local_dir"]
    """Demo: two towers joined here; open_clip: a tag, downloaded; checkpoint: weights of your own; local_dir: a folder
    that open_clip can load.
    """

    model: str | None
    """Open_clip architecture, for `open_clip` and a `checkpoint` that is a file; else null."""

    pretrained: str | None
    """Open_clip tag, for `open_clip`; for a `checkpoint` file the tag whose preprocessing it shares, or null where all
    tags of the architecture have the same.
    """

    path: str | None
    """For `checkpoint` a file or a Hugging Face CLIPModel folder, for `local_dir` a folder; else null."""

    demo: DemoSettings | None = None
    """For `demo`; the other sources do without it."""
