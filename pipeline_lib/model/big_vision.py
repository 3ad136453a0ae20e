"""Checkpoints of big_vision, in which SigLIP was published: `.npz` of numbers, converted by open_clip, checked here."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import open_clip.convert
import torch

from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.clip import Clip


def load_big_vision(clip: Clip, path: Path, origin: str, remedy: str = "") -> None:
    """Copy a checkpoint of big_vision (.npz, SigLIP) into `clip` by open_clip's own conversion, whole and nothing else.

    open_clip copies what it looks for and broadcasts; that every parameter was set, and every number of the file used
    once, is checked here.

    Args:
        clip: A model from `create`.
        path: The file.
        origin: What to name in an error.
        remedy: What to add to it.

    Raises:
        UserError: The file is broken, needs pickle, or does not fit.
    """
    own = dict(clip.module.named_parameters())
    try:
        with np.load(path, allow_pickle=False) as file:
            root = "params/" if "params/b" in file.files else ""  # else of an optimiser there is nothing beside them
            arrays = {name: file[name] for name in file.files if name.startswith(root)}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole .npz file of numbers ({first_lines(error)})") from error
    bad = [name for name, array in arrays.items() if array.dtype.kind != "f" or not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{origin}: {len(bad)} arrays are no finite floating-point numbers ({', '.join(bad[:2])})")
    try:
        with torch.no_grad():
            for parameter in own.values():
                parameter.fill_(torch.nan)
            open_clip.convert.load_big_vision_weights(clip.module, str(path))
    except (KeyError, AttributeError, AssertionError, RuntimeError, IndexError, ValueError) as error:
        found = f"{type(error).__name__}: {first_lines(error)}"
        raise UserError(f"{origin}: does not fit the architecture ({found}){remedy}") from error
    unset = [name for name, parameter in own.items() if not parameter.isfinite().all()]
    given, needed = sum(array.size for array in arrays.values()), sum(parameter.numel() for parameter in own.values())
    if unset or given != needed:
        missing = f"; not set: {', '.join(unset[:2])}" if unset else ""
        raise UserError(f"{origin}: does not fit the architecture: {given} numbers for its {needed}{missing}{remedy}")
