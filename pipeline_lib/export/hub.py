"""The model as an open_clip folder in the layout of the Hugging Face hub, read back and compared bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import card
from pipeline_lib.export.subject import STAGE, Subject, refuse_to_overwrite

CARD = "README.md"
_HUB_NAMES = ("hf_model_name", "hf_tokenizer_name")  # where open_clip looks up tower and tokenizer of an hf-hub: model


def write_hub_folder(subject: Subject, target: Path, *, repository: str = "", force: bool = False) -> str:
    """Write `open_clip_config.json`, weights, tokenizer files, card and manifest to `target`, whole or not at all.

    Args:
        subject: What to write.
        target: Folder to write.
        repository: `ORG/NAME` on the hub: tower and tokenizer are then looked up there, and the card says how to load.
        force: Replace an earlier export.

    Returns:
        Digest of the folder's manifest.

    Raises:
        UserError: `target` is not to be overwritten, or `repository` is no name of the hub.
        RuntimeError: What was written is not what was to be exported.
    """
    refuse_to_overwrite(target, force=force)
    check_repository(repository)
    exported = _named(subject.clip, repository) if repository else subject.clip
    with artifacts.output_directory(target, STAGE) as place:
        work = place()
        model.save(exported, work)
        artifacts.write_text(place(CARD), card.render_card(subject, target.resolve().name, repository))
        written = model.load(work)
        check_folder(subject, written)
        place(model={**subject.facts, **written.facts}, origin=subject.origin)
    return artifacts.read_manifest(target)["digest"]


def check_repository(repository: str) -> None:
    """Refuse what is no name of the hub; an empty one is none at all.

    Raises:
        UserError: See above.
    """
    if repository and repository.count("/") != 1:
        raise UserError(f"--repository: `{repository}` is not of the form ORG/NAME")


def check_folder(subject: Subject, written: model.Clip) -> None:
    """Check weights, preprocessing, tokenizer and features of what was written against the model in memory.

    Raises:
        RuntimeError: A single bit differs.
    """
    kept = [key for key in model.GUARDED if key != "config_digest"]  # it changes with the name of a repository
    differing = [key for key in kept if written.facts[key] != subject.facts[key]]
    expected, found = subject.features(subject.clip), subject.features(written)
    differing += [f"{side} features" for side in expected if not torch.equal(expected[side], found[side])]
    if differing:
        raise RuntimeError(f"{written.directory}: the written model differs in {', '.join(differing)}")


def _named(clip: model.Clip, repository: str) -> model.Clip:
    """Return the same model, with its text tower and tokenizer looked up in `repository`."""
    settings = copy.deepcopy(dict(clip.config))
    text_config = settings["model_cfg"]["text_cfg"]
    text_config |= {name: repository for name in _HUB_NAMES if text_config.get(name)}
    return model.Clip(clip.module, settings, clip.directory)
