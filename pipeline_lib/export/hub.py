"""The model as an open_clip folder in the layout of the Hugging Face hub, read back and compared bit by bit.

A language model that open_clip has among its own text towers becomes one; any other goes along in `language/`.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import card
from pipeline_lib.export.subject import SENTENCES, STAGE, Subject, refuse_to_overwrite
from pipeline_lib.model.features import row_difference

CARD = "README.md"
_HUB_NAMES = ("hf_model_name", "hf_tokenizer_name")  # where open_clip looks up tower and tokenizer of an hf-hub: model
SAME = 1e-5  # largest relative difference of a row of text features


class Tower(NamedTuple):
    """What was found when a language model became a text tower of open_clip."""

    difference: float  # the largest of a row of text features, relative
    captions: int  # that were tokenized
    other_captions: list[str]  # those that open_clip reads otherwise

    @property
    def note(self) -> str:
        """Say how many captions are read otherwise; nothing if none are."""
        if not self.other_captions:
            return ""
        share = f"{len(self.other_captions):,} of {self.captions:,} captions"
        return f"{share} get other token ids in open_clip, such as {self.other_captions[0][:60]!r}"

    def lines(self) -> list[str]:
        """Return what is to be said on the terminal."""
        found = f"largest relative difference of features {self.difference:.1e}"
        tokens = [f"tokens:  {self.note}"] if self.note else []
        return [f"texts:   the language model is open_clip's own text tower now; {found}", *tokens]


class Written(NamedTuple):
    """What was written."""

    digest: str  # of the folder's manifest
    tower: Tower | None  # None: there was no language model to be made one


def write_hub_folder(subject: Subject, target: Path, *, repository: str = "", force: bool = False) -> Written:
    """Write `open_clip_config.json`, weights, tokenizer files, card and manifest to `target`, whole or not at all.

    Args:
        subject: What to write.
        target: Folder to write.
        repository: `ORG/NAME` on the hub: tower and tokenizer are then looked up there, and the card says how to load.
        force: Replace an earlier export.

    Raises:
        UserError: `target` is not to be overwritten, or `repository` is no name of the hub.
        RuntimeError: What was written is not what was to be exported.
    """
    refuse_to_overwrite(target, force=force)
    check_repository(repository)
    with artifacts.output_directory(target, STAGE) as place:
        work = place()
        subject, tower = _as_open_clip(subject, work)
        exported = _named(subject.clip, repository) if repository else subject.clip
        model.save(exported, work)
        note = f"{tower.note}." if tower and tower.note else ""
        artifacts.write_text(place(CARD), card.render_card(subject, target.resolve().name, repository, note=note))
        written = model.load(work)
        check_folder(subject, written)
        place(model={**subject.facts, **written.facts, **card.both_licences(subject)}, origin=subject.origin)
    return Written(artifacts.read_manifest(target)["digest"], tower)


def _as_open_clip(subject: Subject, work: Path) -> tuple[Subject, Tower | None]:
    """Give a language model that open_clip has for a text tower to open_clip; anything else stays as it is.

    Raises:
        RuntimeError: Its features are others there.
    """
    clip = subject.clip
    if not isinstance(clip, model.JoinedClip) or model.foreign_text_side(clip):
        return subject, None
    made = model.with_text_tower(clip, work)
    others = model.read_otherwise(clip, made, subject.captions)
    texts = [*SENTENCES, *subject.sample.texts]
    texts = [text for text in texts if text not in set(model.read_otherwise(clip, made, texts))]
    with torch.no_grad():
        difference = row_difference(*(one.encode_text(one.tokenize(texts)) for one in (made, clip)))
    if not difference <= SAME:  # also where it is NaN
        raise RuntimeError(f"{work}: text features differ by {difference:.2g} (relative) from {clip.directory}")
    made.facts = {**subject.facts, **model.compute_facts(made)}
    return dataclasses.replace(subject, clip=made), Tower(difference, len(subject.captions), others)


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
    """Return the same model, with towers and tokenizer looked up in `repository`; a joined one is read otherwise."""
    if isinstance(clip, model.JoinedClip):
        return clip
    settings = copy.deepcopy(dict(clip.config))
    text_config = settings["model_cfg"]["text_cfg"]
    text_config |= {name: repository for name in _HUB_NAMES if text_config.get(name)}
    if model.is_described(settings["model_cfg"]["vision_cfg"], clip.directory):
        settings["model_cfg"]["vision_cfg"]["timm_model_name"] = f"hf-hub:{repository}"
    return model.Clip(clip.module, settings, clip.directory)
