"""Checkpoint files as tensors by name, whole or in shards, without what a training script wrapped around them.

Nothing here runs code from a file: safetensors, or `torch.load(weights_only=True)`. What that refuses (TorchScript
archives, pickled Python objects) gets one sentence with the remedy.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError

Tensors = dict[str, torch.Tensor]

_INSERTED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # by torch, anywhere in a name
_SCALARS = ("logit_scale", "logit_bias")  # which may stand beside a model that a wrapper holds under one prefix
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "n_averaged")  # integers of OpenAI's, of swa_utils'


def read(path: Path) -> Tensors:
    """Read a checkpoint, or the shards of one where `path` is their index (`*.index.json`)."""
    return read_sharded(path) if path.name.endswith(".index.json") else read_checkpoint(path)


def read_checkpoint(path: Path) -> Tensors:
    """Read tensors by name from a .safetensors file or a PyTorch checkpoint (.pt, .pth, .bin).

    The weights of a training checkpoint are taken out: its `state_dict`, or else its one entry that is a dictionary of
    tensors. Parts of names that wrappers put there are removed (see `unwrapped`).

    Raises:
        UserError: The file is missing, is no checkpoint, or could only be read by running code from it.
    """
    return unwrapped(_read_state_dict(path), path)


def read_sharded(index: Path) -> Tensors:
    """Read the shards that an index (`*.index.json`) lists, as `read_checkpoint` reads one file.

    Raises:
        UserError: A shard is missing, or does not hold exactly what the index says.
    """
    found = artifacts.read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: no `weight_map`, which says in which file each tensor is")
    tensors: Tensors = {}
    for part in sorted({str(part) for part in places.values()}):
        if not part or Path(part).name != part:
            raise UserError(f"{index}: weight_map names `{part}`, which is not a file beside it")
        shard = _read_state_dict(index.with_name(part))
        listed = {name for name, place in places.items() if place == part}
        if shard.keys() != listed:
            missing, more = sorted(listed - shard.keys()), sorted(shard.keys() - listed)
            raise UserError(
                f"{index}: {part} is not the file that it lists: {len(missing)} tensors missing, {len(more)} more "
                f"({(missing + more)[0]})"
            )
        tensors |= shard
    return unwrapped(tensors, index)


def shard_index(path: Path) -> Path | None:
    """Find the index beside `path` that lists it as one of its shards; None if there is none."""
    for index in sorted(path.parent.glob("*.index.json")):
        found = artifacts.read_json(index)
        places = found.get("weight_map") if isinstance(found, dict) else None
        if isinstance(places, dict) and path.name in places.values():
            return index
    return None


def unwrapped(tensors: Mapping[str, torch.Tensor], path: Path) -> Tensors:
    """Return the tensors under the model's own names, without integers that are no weights.

    Removed are the parts that distributed training and compilers insert, and a prefix that every name has, such as
    `model.` or `backbone.`. Beside a prefix a wrapper's own logit scale may stand: it is the one that the weights were
    trained with, and the model's own below the prefix was not used (so does the released code of CLIP-Refine).

    Raises:
        UserError: Two tensors would have one name; `path` is named.
    """
    bare = [(_bare(name), name) for name in tensors]
    names = [short for short, _ in bare if short not in (*_SCALARS, *_NOT_WEIGHTS)]
    prefix = _common_prefix(names)
    inner = {short.removeprefix(prefix): name for short, name in bare if short.startswith(prefix)}
    outer = {short: name for short, name in bare if not short.startswith(prefix)}
    if len(inner) + len(outer) != len(bare):
        raise UserError(f"{path}: two tensors are named alike without what wrappers add; save one model alone")
    return {short: tensors[name] for short, name in (inner | outer).items() if short not in _NOT_WEIGHTS}


def _bare(name: str) -> str:
    """Drop what torch inserts; `module` (DistributedDataParallel, swa_utils) around a model or a tower alone.

    Further inside, some of timm's architectures have a `module` of their own.
    """
    kept: list[str] = []
    for part in name.split("."):
        if part not in _INSERTED and not (part == "module" and kept in ([], ["visual"], ["text"])):
            kept.append(part)
    return ".".join(kept)


def _common_prefix(names: list[str]) -> str:
    """Return the leading parts, each with its dot, that all names share."""
    shared = 0
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return "".join(f"{part}." for part in names[0].split(".")[:shared]) if len(names) > 1 else ""


def _read_state_dict(path: Path) -> Tensors:
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    _refuse_other_files(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    content = _weights_of(content, path) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds no weights; expected a state_dict, or a dictionary with the key `state_dict`")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(
            f"{path}: `{others[0]}` is not a tensor; save the model's state_dict alone, or under the key `state_dict`"
        )
    return {str(name): value for name, value in content.items()}


def _weights_of(content: Mapping[Any, Any], path: Path) -> Any:
    """Take the weights out of a training checkpoint."""
    if "state_dict" in content:
        return content["state_dict"]
    inner = [key for key, value in content.items() if _holds_tensors_alone(value)]
    if len(inner) > 1:
        raise UserError(
            f"{path}: holds several models ({', '.join(f'`{key}`' for key in inner)}); save the state_dict of one alone"
        )
    return content[inner[0]] if inner else content


def _holds_tensors_alone(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, torch.Tensor) for each in value.values())


def _refuse_other_files(path: Path) -> None:
    """Refuse by its first bytes what is no checkpoint at all, so that nobody is told how to make a text file load."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if path.suffix == ".safetensors":
        kind, fits = "safetensors", start[8:9] == b"{"
    else:
        kind, fits = "PyTorch", start[:1] in (b"\x80", b"") or start[:2] == b"PK"
    if not fits:
        raise UserError(f"{path}: not a {kind} checkpoint; was it downloaded whole, and is the name's ending right?")


def _read_safetensors(path: Path) -> Tensors:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _read_torch(path: Path) -> Any:
    if _is_torchscript(path):
        raise UserError(
            f"{path}: a TorchScript archive, as OpenAI publishes them, holds code and is not read; use `base.source: "
            "open_clip` with `model: ViT-B-32-quickgelu` and `pretrained: openai` (or the like), or save the "
            "state_dict() of torch.jit.load(…) once with safetensors.torch.save_file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({found.group(1)})" if found else "something other than tensors"
        raise UserError(
            f"{path}: holds {what} beside the weights, and reading them could run code; where you trust the file, "
            'save torch.load(…, weights_only=False)["state_dict"] once with safetensors.torch.save_file'
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # its reader raises nearly every type on a broken file
        raise UserError(f"{path}: not a whole PyTorch checkpoint ({f'{error} '.splitlines()[0].strip()})") from None


def _is_torchscript(path: Path) -> bool:
    """Tell an archive of code from a checkpoint: both are zips, and only the archive has a constants table."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
