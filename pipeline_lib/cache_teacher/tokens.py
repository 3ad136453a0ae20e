"""The token ids of every caption, for student and teacher, and where they are cut."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import safetensors.torch
import torch

from pipeline_lib.cache_teacher.unit import Unit
from pipeline_lib.core import artifacts
from pipeline_lib.core.truncation import Truncation
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import cut_length

log = logging.getLogger(__name__)


class TextCuts(NamedTuple):
    """Tokens at which each model's ids are cut, the same in all units."""

    student: int
    teacher: int


def tokenize(unit: Unit, student: Clip, teacher: Clip) -> None:
    """Write the whole token ids of a unit's captions, unless an earlier run did; those of one model are kept once."""
    if unit.tokens_path.is_file():
        return
    captions = [caption for entry in unit.read_entries() for caption in entry.captions]
    tokens = {"student": student.tokenize(captions)}
    lengths = student.text_lengths(tokens["student"])
    tokens["student_truncated"] = student.truncated(captions, tokens["student"])
    if teacher is not student:
        tokens["teacher"] = teacher.tokenize(captions)
        tokens["teacher_truncated"] = teacher.truncated(captions, tokens["teacher"])
        lengths = lengths.maximum(teacher.text_lengths(tokens["teacher"]))
    tokens["lengths"] = lengths
    artifacts.write_bytes(unit.tokens_path, safetensors.torch.save(tokens))


def choose_cuts(units: Iterable[Unit], student: Clip, teacher: Clip, text_cut: str) -> TextCuts:
    """Return where token ids are cut: at the longest caption of all `units`, or (text_cut `none`) nowhere.

    One longest caption decides for both models, so that a student and a teacher with one tokenizer see the same ids.
    """
    lengths = torch.cat([_read(unit)["lengths"] for unit in units])
    cuts = {}
    for name, clip in (("student", student), ("teacher", teacher)):
        if text_cut != "none" and clip.text_cut_refusal:
            log.info("the %s's text is not cut: %s", name, clip.text_cut_refusal)
        whole = text_cut == "none" or clip.text_cut_refusal
        cuts[name] = clip.context_length if whole else cut_length(lengths, clip.context_length)
    return TextCuts(**cuts)


def read_token_ids(unit: Unit, cuts: TextCuts) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cut ids, int64 [M, L] each, that the student and the teacher see."""
    tokens = _read(unit)
    return tokens["student"][:, : cuts.student], tokens.get("teacher", tokens["student"])[:, : cuts.teacher]


def count_truncated(units: Iterable[Unit]) -> dict[str, dict[str, int]]:
    """Return the `Truncation.facts` of all captions of `units` by the model that reads them, where some are cut."""
    counts: dict[str, Truncation] = {}
    for unit in units:
        tokens = _read(unit)
        for name in tokens.keys() & {"student", "teacher"}:
            cut = tokens[f"{name}_truncated"]
            captions = [caption for entry in unit.read_entries() for caption in entry.captions] if cut.any() else []
            truncated = [captions[row] for row in cut.nonzero()[:, 0].tolist()]
            counts.setdefault(name, Truncation(tokens[name].shape[1]))
            counts[name].add(len(cut), truncated, tokens[name][cut].tolist())
    return {name: count.facts() for name, count in sorted(counts.items()) if count.num_truncated}


def _read(unit: Unit) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(unit.tokens_path)
