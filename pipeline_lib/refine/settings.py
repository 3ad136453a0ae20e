"""Section `refine` of params.yaml; a recipe's own parameters stand in `recipes.<recipe>`."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Count, NotNegative, Positive, ShareBelow1, section


@section("refine")
class RefineSettings:
    """One recipe, one seed, the optimiser and its schedule."""

    recipe: str
    """A name in `recipes.RECIPES`; its settings stand in the block of that name under `recipes:`."""

    seed: int
    """Of the order of the samples, the caption drawn for each, and RaFA's random vectors."""

    epochs: AtLeastOne
    """Passes over part `refine`."""

    batch_size: AtLeastOne
    """Pairs per optimiser step, over all processes."""

    micro_batch: AtLeastOne | None
    """Pairs per forward pass of a process, to save memory; the gradients stay those of the whole batch; null: all at
    once.
    """

    last_batch: Literal["drop", "keep"]
    """An epoch's last, smaller batch; what is dropped differs from epoch to epoch."""

    max_steps: AtLeastOne | None
    """Optimiser steps after which the run ends; null: when its epochs are over."""

    learning_rate: NotNegative
    """Of AdamW, after the warm-up."""

    weight_decay: NotNegative
    """Of AdamW, on every trained weight but logit_scale and logit_bias."""

    betas: tuple[ShareBelow1, ShareBelow1]
    """Of AdamW: how slowly its means of the gradient and of its square forget."""

    eps: NotNegative
    """Of AdamW: added to the root of the mean square."""

    schedule: Literal["constant", "cosine"]
    """Learning rate after the warm-up; cosine: half a wave, down to 0."""

    warmup_steps: Count
    """Optimiser steps in which the learning rate rises linearly; 0: none."""

    grad_clip: Positive | None
    """Largest norm of the whole gradient; null: as it is."""

    precision: Literal["fp32", "tf32", "bf16"]
    """Of the student's towers (bf16: autocast); the losses stay fp32."""

    text_cut: Literal["set", "batch"]
    """Token ids as cached, or cut again at each batch's longest caption."""

    trainable: Literal["all", "projections"]
    """All weights, or only those that project into the shared space."""

    lock_image: bool
    """True: the image tower is not trained."""

    lock_image_unlocked_groups: Count
    """With lock_image: the last n groups stay trainable."""

    lock_text: bool
    """True: the text tower is not trained."""

    lock_text_unlocked_layers: Count
    """With lock_text: the last n layers stay trainable."""

    train_logit_scale: bool
    """True: logit_scale (up to 100) and, where there is one, logit_bias are trained."""

    stochastic_layers: bool
    """True: dropout and drop-path as in training (step 0 then differs from the teacher)."""

    grad_checkpointing: bool
    """True: activations are computed again in the backward pass: less memory, more time."""

    compile: bool
    """True: both towers through torch.compile."""

    step0_tolerance: NotNegative
    """Largest relative difference between student and teacher features before step 0; larger bounds hold where the
    cache is not 32 bit.
    """
