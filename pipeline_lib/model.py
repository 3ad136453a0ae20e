"""One dual encoder as an open_clip directory: load, encode, describe, save. The only importer of open_clip.

Notable:

- `export.served_model`, which MLflow runs without this package, is the exception to that.
- A directory is self-contained: `open_clip_config.json`, `open_clip_model.safetensors` and, for Hugging Face text
  towers and tokenizers, their files beside them. Models with a native text tower load with plain
  `open_clip.create_model_and_transforms("local-dir:<directory>")`. A Hugging Face text tower would be looked up by
  its hub name there; `load` passes the directory's own path instead, so that a moved copy loads with no network.
- What decides a feature (weights, configuration, preprocessing, activation, tokenizer) is in `Clip.facts`; a
  directory with a manifest is compared with it at load, so that no stage runs a model whose parts do not fit.
- Pixels are kept as uint8 between `decode` (the PIL steps of open_clip's own transform, in its order) and `normalize`
  (its ToTensor and Normalize, on the device); both together equal the transform bitwise.
- `encode_text` takes token ids that were cut after the longest caption where that is exact (`text_cut_refusal`).
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import logging
import os
import pickle
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip.factory
import open_clip.hf_model
import open_clip.modified_resnet
import open_clip.timm_model
import open_clip.tokenizer
import open_clip.transform
import open_clip.transformer
import safetensors
import safetensors.torch
import timm.models
import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline_lib import artifacts
from pipeline_lib.errors import UserError

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
TOWER_CONFIG = "config.json"  # a Hugging Face text tower's own configuration
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
GUARDED = ("config_digest", "preprocess", "quick_gelu", "tokenizer_digest", "weights_digest")
_POOLERS_THAT_IGNORE_PADDING = {"MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler"}  # MaxPooler raises
_TOWERS_THAT_MASK_PADDING = {"bert", "roberta", "xlm-roberta", "mt5"}


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform, split where pixels are still uint8. Picklable, so decoders may be processes."""

    config: Mapping[str, Any]  # open_clip's preprocess_cfg, complete

    @cached_property
    def _steps(self) -> list[Any]:
        steps = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**self.config), is_train=False
        ).transforms
        kinds = [type(step).__name__ for step in steps[-3:]]
        if kinds != ["MaybeConvertMode", "MaybeToTensor", "Normalize"]:
            raise RuntimeError(f"open_clip's evaluation transform ends in {kinds}; this version is not supported")
        return steps

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        size = self.config["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def decode(self, image_bytes: bytes, max_pixels: int) -> np.ndarray:
        """An encoded image through the model's own PIL steps (resize first, RGB after): uint8 [3, H, W].

        Raises:
            ValueError: It cannot be decoded, or it has, or would be resized to, more than `max_pixels` pixels.
        """
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own guard, raised or lowered to ours
        try:
            with Image.open(io.BytesIO(image_bytes)) as image:
                self._check_pixels(image.size, max_pixels)
                for step in self._steps[:-2]:
                    image = step(image)
                return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type on a broken file
            raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error

    def _check_pixels(self, size: tuple[int, int], max_pixels: int) -> None:
        width, height = size
        if min(size) == 0:
            raise ValueError(f"{width}x{height} pixels")
        scale = max(self.image_size[0] / height, self.image_size[1] / width)
        resized = width * height * scale**2 if self.config["resize_mode"] == "shortest" else 0
        if max(width * height, resized) > max_pixels:
            raise ValueError(f"{width}x{height} pixels are too many (limit {max_pixels}, also after resizing)")

    def normalize(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> what ToTensor and Normalize give, bitwise, on the device of `pixels`.

        Computed in float32 as the transform does, then cast to `dtype`. The divisor is a tensor because CUDA
        multiplies by the rounded reciprocal of a plain number.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(f"expected uint8 pixels [B, 3, H, W], got {pixels.dtype} {tuple(pixels.shape)}")

        def constant(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)

        scaled = pixels.to(torch.float32).div_(constant([255.0]))
        return scaled.sub_(constant(self.config["mean"])).div_(constant(self.config["std"])).to(dtype)


class Clip:
    """A loaded model with its preprocessing and tokenizer. B images or captions, D = `embed_dim`."""

    def __init__(self, module: nn.Module, config: Mapping[str, Any], directory: Path) -> None:
        """Wrap `module`; use `load` or `build`."""
        self.module: Any = module  # an nn.Module; Any because open_clip's towers are told apart by their attributes
        self.config = config
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self.preprocess = Preprocess(_preprocess_config(module))
        self.context_length: int = config["model_cfg"]["text_cfg"].get("context_length", 77)
        self.embed_dim: int = config["model_cfg"]["embed_dim"]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.preprocess.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means that `normalize` subtracts."""
        return tuple(self.preprocess.config["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Channel deviations that `normalize` divides by."""
        return tuple(self.preprocess.config["std"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.module.logit_scale.dtype

    @property
    def logit_scale(self) -> torch.Tensor:
        """Scalar multiplier on cosines, already exponentiated; gradients reach the parameter."""
        return self.module.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> torch.Tensor | None:
        """Scalar added to the logits (SigLIP), or None."""
        return None if self.module.logit_bias is None else self.module.logit_bias.reshape(())

    @property
    def _text(self) -> Any:
        """The text tower: CustomTextCLIP and CoCa keep it in `.text`, CLIP holds its parts itself."""
        return getattr(self.module, "text", self.module)

    def decode(self, image_bytes: bytes, max_pixels: int) -> np.ndarray:
        """`Preprocess.decode`."""
        return self.preprocess.decode(image_bytes, max_pixels)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """`Preprocess.normalize` in the type of the weights."""
        return self.preprocess.normalize(pixels, self.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer for this directory."""
        return open_clip.get_tokenizer(f"local-dir:{self.directory.resolve()}")

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        """N captions -> token ids, int64 [N, context_length], padded, too long ones truncated."""
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        return self.tokenizer(texts, context_length=self.context_length)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> raw image features [B, D]."""
        return self.module.encode_image(self.normalize(pixels), normalize=False)

    def encode_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, L], L <= context_length -> raw text features [B, D].

        Cut ids (L < context_length) give the features of the full ids to rounding if every caption's `text_lengths`
        is at most L.

        Raises:
            ValueError: The ids are too long, or cut where that changes the result (`text_cut_refusal`).
        """
        length = token_ids.shape[1]
        if length == self.context_length:
            return self.module.encode_text(token_ids, normalize=False)
        if length > self.context_length:
            raise ValueError(f"{length} tokens, the model takes {self.context_length}")
        if self.text_cut_refusal:
            raise ValueError(f"token ids cannot be cut to {length}: {self.text_cut_refusal}")
        if isinstance(self._text, open_clip.hf_model.HFTextEncoder):
            return self.module.encode_text(token_ids, normalize=False)
        return self._encode_cut_text(token_ids)

    def _encode_cut_text(self, token_ids: torch.Tensor) -> torch.Tensor:
        """open_clip's own operations on the first L positions; its text towers add the whole positional table."""
        text, length = self._text, token_ids.shape[1]
        cast = text.transformer.get_cast_dtype()
        x = text.token_embedding(token_ids).to(cast) + text.positional_embedding[:length].to(cast)
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
        pool_type, eos_id = self._text_pooling
        x = open_clip.transformer.text_global_pool(x, token_ids, pool_type, eos_token_id=eos_id)
        if text.text_projection is None:
            return x
        return text.text_projection(x) if isinstance(text.text_projection, nn.Linear) else x @ text.text_projection

    @property
    def _text_pooling(self) -> tuple[str, int | None]:
        text = self._text
        if text is self.module:  # open_clip.CLIP
            return text.text_pool_type, text.text_eos_id
        return text.pool_type, text.eos_id

    @cached_property
    def text_cut_refusal(self) -> str | None:
        """Why token ids must keep their full length; None where cutting behind the longest caption is exact.

        Exact: a causal mask with pooling at the end-of-text token and no class embedding, or a Hugging Face tower that
        masks padding (on the right) with a pooler that ignores it.
        """
        text = self._text
        if isinstance(text, open_clip.hf_model.HFTextEncoder):
            return self._hf_cut_refusal(text)
        if not isinstance(text, (open_clip.CLIP, open_clip.transformer.TextTransformer)):
            return f"unknown text tower {type(text).__name__}"
        if getattr(text, "cls_emb", None) is not None:
            return "a class token stands behind the padding (embed_cls)"
        if text.attn_mask is None:
            return "the attention is not causal (no_causal_mask), so padding reaches the caption's tokens"
        if self._text_pooling[0] not in ("argmax", "eos"):
            return f"pooling `{self._text_pooling[0]}` is not at the end-of-text token"
        return None

    def _hf_cut_refusal(self, text: Any) -> str | None:
        kind, pooler = text.config.model_type, type(text.pooler).__name__
        if kind not in _TOWERS_THAT_MASK_PADDING:
            return f"text tower type `{kind}` is not known to ignore padding"
        if pooler not in _POOLERS_THAT_IGNORE_PADDING:
            return f"pooler {pooler} is not known to ignore padding"
        if self.tokenizer.tokenizer_mode or self.tokenizer.strip_sep_token:
            return "the tokenizer writes tokens behind the padding or padding inside the caption"
        inner = self.tokenizer.tokenizer
        if inner.padding_side != "right" or inner.pad_token_id != text.config.pad_token_id:
            return "the tokenizer does not pad on the right with the text tower's own padding token"
        return None

    def text_lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [N, L] -> tokens each caption needs, end-of-text included, int64 [N]; L where no cut is exact."""
        length = token_ids.shape[1]
        if self.text_cut_refusal or not len(token_ids):
            return torch.full((len(token_ids),), length, dtype=torch.int64, device=token_ids.device)
        if isinstance(self._text, open_clip.hf_model.HFTextEncoder):
            real = (token_ids != self._text.config.pad_token_id).long()
            return length - real.flip(1).argmax(dim=1)
        pool_type, eos_id = self._text_pooling
        if pool_type == "argmax":
            return token_ids.argmax(dim=1) + 1
        return token_ids.eq(eos_id or 0).int().argmax(dim=1) + 1

    def lock_image(self, unlocked_groups: int) -> None:
        """Freeze the image tower but its last groups, counted as open_clip does.

        Its own ViTs have a group per layer, one of what comes before and one of the projection; timm's as timm counts.

        Raises:
            UserError: The tower can only be frozen whole, or has fewer groups.
        """
        visual = self.module.visual
        if unlocked_groups and isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
            raise UserError(
                f"refine.lock_image_unlocked_groups: {unlocked_groups}, but open_clip's ResNet towers lock whole; set 0"
            )
        if unlocked_groups:
            if isinstance(visual, open_clip.timm_model.TimmModel):
                groups = 1 + max(timm.models.group_parameters(visual.trunk, visual.trunk.group_matcher()))
            else:
                groups = len(visual.transformer.resblocks) + 2
            _check_unlocked("refine.lock_image_unlocked_groups", unlocked_groups, groups)
        visual.lock(unlocked_groups=unlocked_groups)

    def lock_text(self, unlocked_layers: int) -> None:
        """Freeze the text tower but its last layers, counted as open_clip does; a projection on top stays free.

        For its own towers open_clip counts the projection as the first layer from the end, and the embeddings as the
        last. On Hugging Face towers its `lock` fails for n > 0 (open_clip 3.3 looks for names that its table does not
        hold), so layers are found here.

        Raises:
            UserError: The tower has fewer layers.
        """
        key = "refine.lock_text_unlocked_layers"
        if not (unlocked_layers and isinstance(self._text, open_clip.hf_model.HFTextEncoder)):
            if unlocked_layers:
                projections = int(self._text.text_projection is not None)
                _check_unlocked(key, unlocked_layers, len(self._text.transformer.resblocks) + 1 + projections)
            lock = self.module.lock_text_tower if self._text is self.module else self._text.lock  # CoCa has the latter
            lock(unlocked_layers=unlocked_layers)
            return
        self._text.transformer.requires_grad_(False)
        layers = self._hf_layers()
        _check_unlocked(key, unlocked_layers, len(layers))
        for layer in layers[-unlocked_layers:]:
            layer.requires_grad_(True)

    def _hf_layers(self) -> nn.ModuleList:
        """The layers of a Hugging Face text tower, in order."""
        lists = (part for part in self._text.transformer.modules() if isinstance(part, nn.ModuleList))
        return max(lists, key=len)

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer of both towers; the rest is computed again in the backward pass.

        Hugging Face towers do so in train mode alone, which is not the mode in which they are refined, so their layers
        are wrapped here; open_clip passes silently over the towers that cannot.

        Raises:
            UserError: A tower cannot.
        """
        visual, text = self.module.visual, self._text
        try:
            if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
                raise NotImplementedError("open_clip's ResNet")
            tower = visual.trunk if isinstance(visual, open_clip.timm_model.TimmModel) else visual
            tower.set_grad_checkpointing(True)
        except Exception as error:  # timm's towers assert, raise, or have no such function
            raise UserError(
                f"refine.grad_checkpointing: true, but the image tower has no such mode ({_first_lines(error)}); "
                "set it to false, and refine.micro_batch to save memory"
            ) from error
        if isinstance(text, open_clip.hf_model.HFTextEncoder):
            for layer in self._hf_layers():
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        else:
            text.transformer.grad_checkpointing = True

    def projection_names(self) -> list[str]:
        """Names of the parameters that project each tower into the shared space."""
        image = ("visual.proj", "visual.head.", "visual.attnpool.c_proj.")
        text = ("text_projection", "text.text_projection", "text.proj.")
        return [name for name, _ in self.module.named_parameters() if name.startswith(image + text)]


def _check_unlocked(key: str, unlocked: int, there: int) -> None:
    """Refuse to leave more parts of a tower unlocked than it has: open_clip would then train it whole."""
    if unlocked > there:
        lock = key.partition("_unlocked_")[0]
        raise UserError(f"{key}: {unlocked}, but the tower has {there}; lower it, or set {lock} to false")


def load(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, verify: bool = True
) -> Clip:
    """Load an open_clip directory, from any working directory and with no network.

    Args:
        directory: Folder with `open_clip_config.json`, the weights, and the tower's and tokenizer's files if it needs
            any.
        device: Where to put the weights.
        dtype: Type of the weights.
        verify: Compute `Clip.facts` from what was loaded and compare them with the manifest's, where there is one.

    Returns:
        The model in eval mode, gradients on.

    Raises:
        UserError: A file is missing or broken, the weights do not fit, or the manifest says otherwise.
    """
    if not (directory / CONFIG).is_file() or not weights_file(directory):
        raise UserError(f"{directory}: no {CONFIG} and weights in it; run `dvc repro`, or check the path")
    clip = build(directory, load_weights=True)
    recorded = recorded_facts(directory)
    if verify or not recorded:
        clip.facts = {**recorded, **describe(clip)}
        compare_facts(directory, clip.facts, recorded)
    else:
        clip.facts = recorded
    clip.module.to(device=device, dtype=dtype)
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in clip.module.visual.modules()):
        clip.module.visual.to(memory_format=torch.channels_last)  # half the time of a convolutional tower
    return clip


def build(directory: Path, *, load_weights: bool = False) -> Clip:
    """The model that `directory/open_clip_config.json` describes, with random weights unless `load_weights`.

    Raises:
        UserError: The configuration, a file it needs, or the weights are missing or do not fit together.
    """
    config = read_config(directory)
    place, text_config = str(directory.resolve()), dict(config["model_cfg"]["text_cfg"])
    if text_config.get("hf_model_name"):
        if not (directory / TOWER_CONFIG).is_file():
            raise UserError(f"{directory / TOWER_CONFIG}: no such file; the text tower's configuration belongs there")
        text_config |= {"hf_model_name": place, "hf_model_pretrained": False}
    try:
        with _quiet():
            module = open_clip.create_model(
                f"local-dir:{place}", load_weights=load_weights, pretrained_text=False, text_cfg=text_config
            )
    except (RuntimeError, ValueError, TypeError, OSError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory}: does not load as an open_clip model: {_first_lines(error)}") from error
    return Clip(module.eval().requires_grad_(True), config, directory)


def read_config(directory: Path) -> dict[str, Any]:
    """The content of `directory/open_clip_config.json`.

    Raises:
        UserError: The file is missing, or describes no model.
    """
    config = artifacts.read_json(directory / CONFIG)
    found = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(found, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= found.keys():
        raise UserError(f"{directory / CONFIG}: no `model_cfg` with embed_dim, vision_cfg and text_cfg")
    return config


def load_weights(clip: Clip, state_dict: Mapping[str, torch.Tensor], origin: str, remedy: str = "") -> None:
    """Copy `state_dict` into `clip`: every tensor of the model, each in its shape, and nothing else.

    open_clip's own conversions apply (older names of separate text towers, Apple's MobileCLIP names); a position table
    of another length is refused instead of being interpolated, since that would be another model.

    Args:
        clip: A model from `build`.
        state_dict: Tensors by open_clip's names, of any floating type.
        origin: What to name in an error.
        remedy: What to add to it.

    Raises:
        UserError: It does not fit; names the first tensors that are missing, unexpected or of another shape.
    """
    tensors = open_clip.factory.convert_state_dict(clip.module, dict(state_dict))
    if "positional_embedding" in tensors and not hasattr(clip.module, "positional_embedding"):
        tensors = open_clip.model.convert_to_custom_text_state_dict(tensors)
    tensors.pop("text.transformer.embeddings.position_ids", None)  # a buffer that transformers < 4.31 saved
    own = clip.module.state_dict()
    for name in ("logit_scale", "logit_bias"):  # 0-d in some versions, 1-d in others
        if name in tensors and name in own and tensors[name].numel() == own[name].numel():
            tensors[name] = tensors[name].reshape(own[name].shape)
    problems = _misfits(own, tensors)
    if problems:
        raise UserError(f"{origin}: does not fit the architecture: {'; '.join(problems)}{remedy}")
    clip.module.load_state_dict(tensors)


def _misfits(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    groups = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": shapes,
    }
    return [f"{len(found)} {kind} ({_some(found)})" for kind, found in groups.items() if found]


def _some(names: list[str], count: int = 2) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def describe(clip: Clip) -> dict[str, Any]:
    """What decides the model's features, as JSON values; computed from the loaded weights and files."""
    model_config = clip.config["model_cfg"]
    tower = clip.directory / TOWER_CONFIG
    settings = {"model_cfg": model_config, "tower": artifacts.read_json(tower) if tower.is_file() else None}
    size = clip.image_size
    return {
        "weights_digest": weights_digest(clip.module.state_dict()),
        "config_digest": artifacts.digest(settings),
        "preprocess": {**clip.preprocess.config, "size": list(size)},
        "tokenizer_digest": _tokenizer_digest(clip),
        "quick_gelu": any(isinstance(m, open_clip.transformer.QuickGELU) for m in clip.module.modules()),
        "embed_dim": clip.embed_dim,
        "context_length": clip.context_length,
        "image_size": list(size),
        "logit_scale": clip.logit_scale.item(),
    }


def save(clip: Clip, directory: Path) -> None:
    """Write `clip` as an open_clip directory: configuration, weights, and its tower's and tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(directory / CONFIG, clip.config)
    for name in (TOWER_CONFIG, *TOKENIZER_FILES):
        source = clip.directory / name
        if source.is_file() and clip.directory.resolve() != directory.resolve():
            shutil.copyfile(source, directory / name)
    save_weights(clip.module.state_dict(), directory / WEIGHTS)


def save_weights(state_dict: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically; tied ones are written under each of their names.

    Raises:
        OSError: The disk is full or not writable.
    """
    tensors, storages = {}, set()
    for name, tensor in state_dict.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        tensors[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    with artifacts.atomic_open(path) as file:
        try:
            safetensors.torch.save_file(tensors, file.name, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            if not found:
                raise
            raise OSError(int(found.group(1)), os.strerror(int(found.group(1))), str(path)) from error
        # safetensors put a file of its own there, readable by the owner alone and not yet synced
        os.chmod(file.name, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        with open(file.name, "rb") as written:
            os.fsync(written.fileno())


def weights_file(directory: Path) -> Path | None:
    """The checkpoint that open_clip would load from `directory`, or None."""
    with _quiet():
        found = open_clip.factory._find_checkpoint_in_dir(directory)
    return Path(found) if found else None


def weights_digest(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of the tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(artifacts.canonical_json([name, str(data.dtype), list(data.shape)]).encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def architectures() -> list[str]:
    """Names of the architectures that open_clip knows."""
    return open_clip.list_models()


def architecture(name: str) -> dict[str, Any] | None:
    """open_clip's `model_cfg` for an architecture name, or None."""
    return open_clip.get_model_config(name)


def pretrained_tags(name: str) -> dict[str, dict[str, Any]]:
    """The published weights of an architecture: open_clip's own record (preprocessing, quick_gelu, place) by tag."""
    return {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}


def download(tag_config: Mapping[str, Any]) -> Path:
    """Fetch the weights of a `pretrained_tags` record (or find them in the local cache); the only network access.

    Raises:
        UserError: They cannot be had.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry, twice
    try:
        return Path(open_clip.factory.download_pretrained(dict(tag_config)))
    except Exception as error:  # every HTTP, hub and cache error there is
        place = tag_config.get("hf_hub") or tag_config.get("url")
        raise UserError(f"{place}: download failed: {_first_lines(error)}") from error


def write_config(directory: Path, model_config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> None:
    """Write `open_clip_config.json`, and fetch what a Hugging Face text tower or tokenizer needs beside it.

    Files that are there already are kept, so that only a directory without them needs the network.

    Args:
        directory: Where the model is being put together.
        model_config: open_clip's `model_cfg`.
        preprocess: Keys of open_clip's `preprocess_cfg`; the rest take its defaults. The size is the image tower's.

    Raises:
        UserError: A file is missing and cannot be fetched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    complete = open_clip.transform.merge_preprocess_dict(open_clip.transform.PreprocessCfg(), dict(preprocess))
    complete["size"] = model_config["vision_cfg"].get("image_size", 224)
    artifacts.write_json(directory / CONFIG, {"model_cfg": dict(model_config), "preprocess_cfg": complete})
    text_config = model_config["text_cfg"]
    tower, tokenizer = text_config.get("hf_model_name"), text_config.get("hf_tokenizer_name")
    try:
        if tower and not (directory / TOWER_CONFIG).is_file():
            import transformers

            transformers.AutoConfig.from_pretrained(tower).save_pretrained(directory)
        if tokenizer and not any((directory / name).is_file() for name in TOKENIZER_FILES):
            open_clip.tokenizer.HFTokenizer(tokenizer, **(text_config.get("tokenizer_kwargs") or {})).save_pretrained(
                directory
            )
    except Exception as error:  # every HTTP and hub error, and a missing transformers package
        raise UserError(f"{tower or tokenizer}: cannot be fetched: {_first_lines(error)}") from error


def standard_vocabulary() -> dict[str, int]:
    """Token ids by token of open_clip's own tokenizer, its two special tokens spelled as Hugging Face spells them."""
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {names.get(token, token): row for token, row in open_clip.tokenizer.SimpleTokenizer().encoder.items()}


def imagenet_templates() -> list[str]:
    """open_clip's copy of the 80 ImageNet prompt templates, with {} for the class name."""
    return [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def _preprocess_config(module: nn.Module) -> dict[str, Any]:
    """open_clip's preprocess_cfg with every key, as JSON values."""
    config = asdict(open_clip.transform.PreprocessCfg()) | open_clip.get_model_preprocess_cfg(module)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _tokenizer_digest(clip: Clip) -> str:
    """Hex SHA-256 of what decides token ids: the tokenizer's files, or open_clip's own vocabulary and class."""
    text_config = clip.config["model_cfg"]["text_cfg"]
    settings = {key: text_config.get(key) for key in ("tokenizer_mode", "tokenizer_kwargs")}
    if text_config.get("hf_tokenizer_name"):
        paths = [clip.directory / name for name in TOKENIZER_FILES]
    else:
        paths = [Path(open_clip.tokenizer.default_bpe())]
    files = {path.name: artifacts.sha256_file(path) for path in paths if path.is_file()}
    return artifacts.digest({"files": files, "context_length": clip.context_length, **settings})


def recorded_facts(directory: Path) -> dict[str, Any]:
    """The `model` block of the directory's manifest; empty where there is no manifest."""
    if not (directory / artifacts.MANIFEST).is_file():
        return {}
    return artifacts.read_manifest(directory).get("model", {})


def compare_facts(directory: Path, found: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse a model whose weights, configuration, preprocessing, activation or tokenizer are not the recorded ones.

    Raises:
        UserError: They differ; says in what.
    """
    differing = [key for key in GUARDED if key in recorded and found[key] != recorded[key]]
    if differing:
        what = "; ".join(f"{key} is {_short(found[key])}, recorded {_short(recorded[key])}" for key in differing)
        raise UserError(
            f"{directory}: not the model that its {artifacts.MANIFEST} describes: {what}; "
            "the folder was changed after it was written, run `dvc repro -f` on the stage that writes it"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop open_clip's warnings on the root logger: `build` without weights is no mistake here."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(errors_only)
    try:
        yield
    finally:
        root.removeFilter(errors_only)


def _short(value: Any) -> str:
    text = artifacts.canonical_json(value).strip('"')
    return text if len(text) <= 160 else f"{text[:160]}…"


def _first_lines(error: BaseException, count: int = 3) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(itertools.islice((line for line in lines if line), count))[:500]
