"""What open_clip knows without a folder: architectures, published weights, its vocabulary, its prompt templates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import open_clip.factory
import open_clip.tokenizer

from pipeline_lib.core.errors import UserError, first_lines


def architectures() -> list[str]:
    """List the names of the architectures that open_clip knows."""
    return open_clip.list_models()


def architecture(name: str) -> dict[str, Any] | None:
    """Return open_clip's `model_cfg` for an architecture name, or None."""
    return open_clip.get_model_config(name)


def pretrained_tags(name: str) -> dict[str, dict[str, Any]]:
    """List the published weights of an architecture: by tag open_clip's record (preprocessing, quick_gelu, place)."""
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
        raise UserError(f"{place}: download failed: {first_lines(error)}") from error


def standard_vocabulary() -> dict[str, int]:
    """Return open_clip's own token ids by token, the two special tokens spelled as Hugging Face spells them."""
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return {names.get(token, token): row for token, row in open_clip.tokenizer.SimpleTokenizer().encoder.items()}


def standard_merges() -> list[tuple[str, str]]:
    """Return the merges of open_clip's own tokenizer, in their order."""
    return list(open_clip.tokenizer.SimpleTokenizer().bpe_ranks)


def imagenet_templates() -> list[str]:
    """Return open_clip's copy of the 80 ImageNet prompt templates, with {} for the class name."""
    return [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
