"""Section `refine` of params.yaml; a recipe's own parameters stand in `recipes.<recipe>`."""

from __future__ import annotations

from typing import Annotated, Literal

from pipeline_lib.core.schema import AtLeastOne, Count, NotNegative, Positive, Range, ShareBelow1, block, section


@block
class AdapterSettings:
    """A trained map, of random weights (a function of `refine.seed`) to begin with."""

    depth: Count
    """Number of residual blocks; 0: one linear map. LLM2CLIP has 4."""

    expansion: AtLeastOne
    """Width inside a residual block, as a multiple of the language model's."""

    dropout: ShareBelow1
    """Share of a block's inner values that dropout zeroes, where `refine.stochastic_layers` is on."""

    learning_rate: NotNegative
    """Learning rate of the adapter; the schedule is that of `refine`."""


@section("refine")
class RefineSettings:
    """One recipe, one seed, the optimiser and its schedule."""

    recipe: str
    """Name of the recipe; its parameters stand in the block of that name under `recipes`."""

    seed: int
    """Seed of the order of the samples, of the caption drawn for each, and of RaFA's random vectors."""

    epochs: AtLeastOne
    """Passes over part `refine`."""

    batch_size: AtLeastOne
    """Number of image-caption pairs in an optimiser step, over all processes."""

    micro_batch: AtLeastOne | None
    """Number of pairs that a process embeds at once, to save memory (null: all of its share); the gradients stay those
    of the whole batch.
    """

    last_batch: Literal["drop", "keep"]
    """What becomes of an epoch's last, smaller batch; drop: other samples are left out in each epoch."""

    max_steps: AtLeastOne | None
    """Number of optimiser steps after which the run ends; null: when its epochs are over."""

    learning_rate: NotNegative
    """Learning rate of AdamW after the warm-up."""

    weight_decay: NotNegative
    """Weight decay of AdamW, on every trained weight but logit_scale and logit_bias."""

    betas: tuple[ShareBelow1, ShareBelow1]
    """Decay rates of AdamW's running means of the gradient and of its square."""

    eps: NotNegative
    """Number that AdamW adds to its denominator, the root of the mean squared gradient."""

    layer_decay: Annotated[float, Range(above=0, at_most=1)] | None
    """Factor on the learning rate from each layer of the image tower to the one before it, from the shared space to
    the pixels: what lies lower moves less. null: one rate. LLM2CLIP has 0.85.
    """

    schedule: Literal["constant", "cosine"]
    """Course of the learning rate after the warm-up; cosine: along half a cosine down to 0."""

    warmup_steps: Count
    """Number of optimiser steps over which the learning rate rises linearly; 0: no warm-up."""

    grad_clip: Positive | None
    """Largest norm of the whole gradient, which is scaled down to it; null: no clipping."""

    precision: Literal["fp32", "tf32", "bf16"]
    """Precision of the student's towers (bf16: autocast); the losses stay fp32."""

    text_cut: Literal["set", "batch", "groups"]
    """Where token ids are cut. `set` takes them as they are cached, `batch` cuts once more at the longest caption of
    each batch. `groups` sorts a batch by length into four passes, each cut at its own longest: the fastest where
    lengths differ. The features are the same to rounding.
    """

    trainable: Literal["all", "projections"]
    """Which weights are trained; projections: only those that project into the shared space."""

    lock_image: bool
    """Whether the image tower is locked, that is not trained."""

    lock_image_unlocked_groups: Count
    """Number of the locked image tower's last groups of layers that are trained nevertheless."""

    lock_text: bool
    """Whether the text tower is locked, that is not trained."""

    lock_text_unlocked_layers: Count
    """Number of the locked text tower's last layers that are trained nevertheless."""

    train_logit_scale: bool
    """Whether logit_scale (between 1 and 100) and, where there is one, logit_bias are trained; refused where the
    recipe's loss does not depend on them.
    """

    logit_scale: Positive | None
    """Multiplier on cosines to begin with; null: the base's own. A language model's space is not yet aligned with the
    images, which calls for less (14.3) and `train_logit_scale`.
    """

    adapter: AdapterSettings | None
    """The map from a language model's features to text features, with `paths.text`; null: the base's own text tower."""

    stochastic_layers: bool
    """Whether dropout and drop-path are on; step 0 then differs from the teacher."""

    grad_checkpointing: bool
    """Whether activation checkpointing is on: activations are computed again in the backward pass, which takes less
    memory and more time.
    """

    compile: bool
    """Whether both towers run through torch.compile."""

    step0_tolerance: NotNegative
    """Largest relative difference between the student's and the cached features that is accepted before the first step;
    where the cache is not in fp32, a larger one is.
    """

    @property
    def text_groups(self) -> int:
        """Return in how many passes, by length, a batch's captions are embedded; more than four save little."""
        return 4 if self.text_cut == "groups" else 1
