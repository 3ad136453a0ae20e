"""The towers of a model for training: locked whole or in part, with less memory, and what projects from them."""

from __future__ import annotations

import functools

import open_clip.hf_model
import open_clip.modified_resnet
import open_clip.timm_model
import open_clip.transformer
import timm.models
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.clip import Clip
from pipeline_lib.model.joined import ADAPTER, JoinedClip


def lock_image(clip: Clip, unlocked_groups: int) -> None:
    """Freeze the image tower, whole or but its last groups, counted as open_clip does.

    Its own ViTs have a group per layer, one of what comes before and one of the projection; timm's as timm counts.

    Raises:
        UserError: The tower can only be frozen whole, or has fewer groups.
    """
    visual = clip.module.visual
    if not unlocked_groups:
        visual.requires_grad_(False)  # open_clip's `lock` leaves a head that timm's towers project with
        return
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        raise UserError(
            f"refine.lock_image_unlocked_groups: {unlocked_groups}, but open_clip's ResNet towers lock whole; set 0"
        )
    if isinstance(visual, open_clip.timm_model.TimmModel):
        groups = 1 + max(timm.models.group_parameters(visual.trunk, visual.trunk.group_matcher()))
    else:
        groups = len(visual.transformer.resblocks) + 2
    _check_unlocked("refine.lock_image_unlocked_groups", unlocked_groups, groups)
    visual.lock(unlocked_groups=unlocked_groups)


def image_layers(clip: Clip) -> list[list[str]]:
    """List the names of the image tower's weights by layer, from the pixels to the shared space.

    open_clip's ViTs: what comes before the layers, each layer, what comes after; timm's towers as timm groups them.

    Raises:
        UserError: It is neither.
    """
    visual = clip.module.visual
    names = [name for name, _ in clip.module.named_parameters() if name.startswith("visual.")]
    if isinstance(visual, open_clip.timm_model.TimmModel):
        groups = timm.models.group_parameters(visual.trunk, visual.trunk.group_matcher())
        trunk = [[f"visual.trunk.{name}" for name in groups[at]] for at in sorted(groups)]
        known = {name for group in trunk for name in group}
        return [*trunk, [name for name in names if name not in known]]
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        blocks = [f"visual.transformer.resblocks.{at}." for at in range(len(visual.transformer.resblocks))]
        first = ("visual.conv1.", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.")
        inner = [[name for name in names if name.startswith(block)] for block in blocks]
        known = {name for group in inner for name in group} | {name for name in names if name.startswith(first)}
        before = [name for name in names if name.startswith(first)]
        return [before, *inner, [name for name in names if name not in known]]
    raise UserError(f"refine.layer_decay: the layers of a {type(visual).__name__} are not known here; write null")


def lock_text(clip: Clip, unlocked_layers: int) -> None:
    """Freeze the text tower, or all but its last layers, counted as open_clip does.

    For its own towers open_clip counts the projection as the first layer from the end, and the embeddings as the
    last. On Hugging Face towers its `lock` fails for n > 0 (open_clip 3.3 looks for names that its table does not
    hold), so layers are found here; a projection on top is free with them.

    Raises:
        UserError: The tower has fewer layers.
    """
    key, text = "refine.lock_text_unlocked_layers", clip.text_tower
    if not unlocked_layers and text is not clip.module:
        text.requires_grad_(False)  # open_clip's `lock` leaves the projection of Hugging Face towers
        return
    if isinstance(text, open_clip.hf_model.HFTextEncoder):
        layers = _hf_layers(clip)
        _check_unlocked(key, unlocked_layers, len(layers))
        text.transformer.requires_grad_(False)
        for layer in layers[-unlocked_layers:]:
            layer.requires_grad_(True)
        return
    if unlocked_layers:
        projections = int(text.text_projection is not None)
        _check_unlocked(key, unlocked_layers, len(text.transformer.resblocks) + 1 + projections)
    lock = clip.module.lock_text_tower if text is clip.module else text.lock  # CoCa has the latter
    lock(unlocked_layers=unlocked_layers)


def _hf_layers(clip: Clip) -> nn.ModuleList:
    """Find the layers of a Hugging Face text tower, in order."""
    lists = (part for part in clip.text_tower.transformer.modules() if isinstance(part, nn.ModuleList))
    return max(lists, key=len)


def checkpoint_activations(clip: Clip) -> None:
    """Switch on activation checkpointing in both towers: only what enters a layer is kept for the backward pass.

    Hugging Face towers do so in train mode alone, which is not the mode in which they are refined, so their layers
    are wrapped here; open_clip passes silently over the towers that cannot.

    Raises:
        UserError: A tower cannot.
    """
    visual, text = clip.module.visual, clip.text_tower
    try:
        if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
            raise NotImplementedError("open_clip's ResNet")
        tower = visual.trunk if isinstance(visual, open_clip.timm_model.TimmModel) else visual
        tower.set_grad_checkpointing(True)
    except Exception as error:  # timm's towers assert, raise, or have no such function
        raise UserError(
            f"refine.grad_checkpointing: true, but the image tower has no such mode ({first_lines(error)}); "
            "set it to false, and refine.micro_batch to save memory"
        ) from error
    if isinstance(clip, JoinedClip):
        return  # an adapter is small
    if isinstance(text, open_clip.hf_model.HFTextEncoder):
        for layer in _hf_layers(clip):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    else:
        text.transformer.grad_checkpointing = True


def faster_in_channels_last(visual: nn.Module) -> bool:
    """Tell whether an image tower is convolutional, and safe with its channels last in memory.

    Not safe is a strided 1 × 1 convolution without padding on few channels: on CPUs the gradient of its weights writes
    past its memory (torch 2.14 with 1 to 15 channels; here 16 or any multiple count as safe). MobileCLIP begins so.
    """
    layers = list(visual.modules())
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers) and not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels % 16 != 0
        for layer in layers
    )


def projection_names(clip: Clip) -> list[str]:
    """List the names of the parameters that project each tower into the shared space."""
    image = ("visual.proj", "visual.head.", "visual.attnpool.c_proj.")
    text = ("text_projection", "text.text_projection", "text.proj.", ADAPTER)
    return [name for name, _ in clip.module.named_parameters() if name.startswith(image + text)]


def _check_unlocked(key: str, unlocked: int, there: int) -> None:
    """Refuse to leave more parts of a tower unlocked than it has: open_clip would then train it whole."""
    if unlocked > there:
        lock = key.partition("_unlocked_")[0]
        raise UserError(f"{key}: {unlocked}, but the tower has {there}; lower it, or set {lock} to false")
