"""The files of a model's folder: their names, tensors written as safetensors, and the digest of tensors."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline_lib.core import artifacts

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
TOWER_CONFIG = "config.json"  # the configuration of a Hugging Face text tower, or of a described image tower
DESCRIBED = "local-dir:."  # `timm_model_name` of an image tower that is described there, in full, as timm reads it
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


def is_described(vision_config: Mapping[str, Any], directory: Path) -> bool:
    """Tell whether the image tower is one of timm's that `directory/config.json` describes.

    Its `timm_model_name` is `DESCRIBED`, or says in which repository of the hub such a folder lies.
    """
    name = str(vision_config.get("timm_model_name") or "")
    path = directory / TOWER_CONFIG
    return name.startswith(("local-dir:", "hf-hub:")) and path.is_file() and "architecture" in artifacts.read_json(path)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a Hugging Face text tower and tokenizer, as far as there are any."""
    for name in (TOWER_CONFIG, *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


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


def weights_digest(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Return the hex SHA-256 over names, types, shapes and bytes of the tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(artifacts.canonical_json([name, str(data.dtype), list(data.shape)]).encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
