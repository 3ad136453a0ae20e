"""Section `base` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Count, NotNegative, Positive, ShareBelow1, block, section


@block
class DemoSettings:
    """The small dual encoder joined from two published towers; its heads are trained on part `base`."""

    image_size: AtLeastOne
    """The side of the square input, in pixels."""

    embed_dim: AtLeastOne
    """The width of the space that both heads project into."""

    epochs: AtLeastOne
    """The number of passes over part `base`."""

    batch_size: AtLeastOne
    """The largest number of pairs in a step. An epoch is divided into steps of about equal size."""

    learning_rate: Positive
    """The learning rate of AdamW at the start. It falls to 0 along half a cosine."""

    weight_decay: NotNegative
    """The weight decay of AdamW on the heads. The temperature has none."""

    dropout: ShareBelow1
    """The share of the towers' features that is set to 0 while the heads are trained."""

    logit_scale: Positive | None
    """The scale of the cosines while the heads are trained. At 100, where OpenAI's CLIP ended, images and captions stay
    far apart (the modality gap). `null` learns it, and they nearly meet.
    """

    seed: Count
    """The seed of the heads' first weights, of the order, of the captions drawn and of the dropout."""


@section("base")
class BaseSettings:
    """Where the pre-trained model comes from."""

    source: Literal["demo", "open_clip", "hub", "checkpoint", "local_dir"]
    """The kind of source. `demo` joins two published towers here. `open_clip` downloads a tag of open_clip. `hub`
    downloads a model of the Hugging Face hub, in open_clip's layout or transformers'. `checkpoint` reads weights of
    your own. `local_dir` copies a folder that open_clip can load.
    """

    model: str | None
    """The open_clip architecture, such as `ViT-B-32-quickgelu`. It is needed for `open_clip` and for a `checkpoint`
    that is a file. It is `null` otherwise.
    """

    pretrained: str | None
    """The tag of open_clip's published weights, such as `openai`. For a `checkpoint` file it names the tag whose
    preprocessing the file shares, and may be `null` where all tags of the architecture have the same.
    """

    path: str | None
    """The path of the model. For `checkpoint` it is a file or a folder of transformers' CLIPModel or SiglipModel, for
    `local_dir` a folder, for `hub` a name such as `openai/clip-vit-base-patch32`, with `@revision` behind it for a
    certain commit. It is `null` otherwise.
    """

    demo: DemoSettings | None = None
    """The settings of the `demo` source. The other sources do without this block."""
