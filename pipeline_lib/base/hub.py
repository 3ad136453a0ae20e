"""Models of the Hugging Face hub as folders: downloaded once into its local cache, or found there with no network.

Of a repository only what a model is made of is fetched: configurations, tokenizer, card, and its weights once, without
pickles where there are safetensors. The commit is recorded, so that the same model can be had again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import errors

from pipeline_lib import model
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.licence import CARD, licence_of

_FILES = (model.CONFIG, model.TOWER_CONFIG, *model.TOKENIZER_FILES, CARD)
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = (  # the first that is there; with its shards where it is their index
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


class Snapshot(NamedTuple):
    """One commit of a repository in the local cache."""

    repository: str
    revision: str
    folder: Path


def fetch(place: str) -> Snapshot:
    """Fetch the model `org/name`, `hf-hub:org/name` or `org/name@revision`.

    Raises:
        UserError: It is no such name, or neither the hub nor the local cache has the model.
    """
    match = re.fullmatch(r"(?:hf-hub:|https://huggingface\.co/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?", place)
    if not match:
        raise UserError(f"`{place}` is no model of the hub; write org/name, or org/name@revision")
    repository, revision = match[1], match[2]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry, twice
    try:
        files = huggingface_hub.model_info(repository, revision=revision).siblings or ()
        names = needed(file.rfilename for file in files)
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=names))
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository}: no revision `{revision}` on the hub") from error
    except errors.RepositoryNotFoundError as error:  # a gated one too
        raise UserError(
            f"{repository}: not on the hub, or only for some; check the name, or run `hf auth login`"
        ) from error
    except Exception as error:  # every other HTTP and network error
        folder = _cached(repository, revision, error)
    return Snapshot(repository, folder.name, folder)


def needed(names: Iterable[str]) -> list[str]:
    """Return which files of a repository a model is made of, the weights in one format.

    What open_clip wrote is preferred: it says what a CLIPModel leaves out.
    """
    there = set(names)
    candidates = [name for name in _WEIGHTS if model.CONFIG in there or not name.startswith("open_clip")]
    weights = next((name for name in candidates if name in there), "")
    ending = weights.removesuffix(".index.json").rpartition(".")[2]
    shards = [name for name in there if (m := _SHARD.fullmatch(name)) and m[2] == ending] if "index" in weights else []
    return sorted(there.intersection((*_FILES, *_PROCESSORS, weights)) | set(shards))


def licence(repository: str, revision: str | None = None) -> str:
    """Return the licence that the card of a repository states in its metadata, or where to look for it."""
    place = f"https://huggingface.co/{repository}"
    try:
        card = Path(huggingface_hub.hf_hub_download(repository, CARD, revision=revision))
    except Exception:  # every HTTP and network error, or no card
        return f"see {place}"
    return licence_of(card, place) or f"see {place}"


def revision_of(file: Path) -> str | None:
    """Return the commit from which a file of the local cache comes; None for a file elsewhere."""
    parts = file.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-2] else None


def _cached(repository: str, revision: str | None, reason: Exception) -> Path:
    """Find a repository in the local cache.

    Raises:
        UserError: It is not there, or not whole; tells why it could not be fetched and what to do.
    """
    # Not by `snapshot_download`, which misses what was not to be fetched.
    names = (model.CONFIG, model.TOWER_CONFIG, *_WEIGHTS)
    found = {name: huggingface_hub.try_to_load_from_cache(repository, name, revision=revision) for name in names}
    there = {name: Path(path) for name, path in found.items() if isinstance(path, str)}
    if there.keys().isdisjoint(_WEIGHTS):
        why = "HF_HUB_OFFLINE is set" if isinstance(reason, errors.OfflineModeIsEnabled) else first_lines(reason, 1)
        lacking = "with its weights " if there else ""
        raise UserError(
            f"{repository}: not {lacking}in the local cache of the hub, and the hub cannot be reached ({why}); run "
            f"`hf download {repository}` where there is a network and set HF_HOME to that cache, or name a folder with "
            "`source: checkpoint` or `local_dir`"
        ) from reason
    return next(iter(there.values())).parent
