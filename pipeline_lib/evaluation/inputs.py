"""What a model is evaluated on, the model itself, and the guards: one refined from this base, and known answers met."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import artifacts, config, model
from pipeline_lib.errors import UserError
from pipeline_lib.shards import LEARNED_FROM, TRAINING_PARTS, Part, read_part

log = logging.getLogger(__name__)
LIKE_BASE = ("preprocess", "quick_gelu", "tokenizer_digest", "config_digest")  # refinement changes weights only


@dataclass(frozen=True)
class Inputs:
    """What a model is evaluated on."""

    sets: Sequence[Part]
    selection: Part  # choices are made on it
    training: Part | None = None  # its means centre the mean-centred variant; it trains the linear probe, with
    # `selection` to choose the strength, if both carry labels
    base_weights: Mapping[str, torch.Tensor] | None = None  # of the other end of the WiSE-FT sweep

    @property
    def all_sets(self) -> list[Part]:
        """The selection part and the sets."""
        return [self.selection, *self.sets]


def open_model(
    name: str, paths: config.Paths, device: torch.device
) -> tuple[model.Clip, Mapping[str, torch.Tensor] | None]:
    """The model `name`, and for the refined one the weights of the base model that it came from.

    Raises:
        UserError: A model is missing or unfinished or not what its manifest says, or the refined one came from another
            base model or has other preprocessing, activation or tokenizer.
    """
    folder, stage = {"base": (paths.base, "base"), "refined": (paths.refined, "refine")}[name]
    artifacts.read_manifest(folder, stage=stage)  # never another model in its place
    clip = model.load(folder, device=device)
    if name == "base":
        return clip, None
    base = model.load(paths.base, device=device)
    if clip.facts.get("refined_from") != base.facts["weights_digest"]:
        raise UserError(f"{folder}: was not refined from the model in {paths.base}; run `dvc repro refine`")
    differing = [key for key in LIKE_BASE if clip.facts.get(key) != base.facts.get(key)]
    if differing:
        raise UserError(
            f"{folder}: {', '.join(differing)} differ from what {paths.base} recorded, so the two cannot be compared; "
            "run `dvc repro -f refine`"
        )
    return clip, base.module.state_dict()


def open_inputs(shards: Path, settings: config.Evaluate) -> Inputs:
    """The parts and sets below `shards` that a model is evaluated on, from the manifest of the whole folder.

    Raises:
        UserError: The folder is missing or unfinished, there is nothing to evaluate on or to select on.
    """
    names = list(artifacts.read_manifest(shards, stage="shard")["parts"])
    if settings.selection in LEARNED_FROM:
        raise UserError(
            f"evaluate.selection: models are trained on `{settings.selection}`, so what is best there need not be best "
            "elsewhere; name a part that none was trained on, such as `val`"
        )
    if settings.selection not in names:
        there = ", ".join(names)
        raise UserError(f"evaluate.selection: `{settings.selection}` is not among the parts in {shards}: {there}")
    sets = [name for name in names if name not in {*LEARNED_FROM, *TRAINING_PARTS, settings.selection}]
    if not sets:
        raise UserError(
            f"{shards}: nothing to evaluate on; add a part (`eval: 0.2`) to data.parts or a set to data.evaluation"
        )
    return Inputs(
        sets=[read_part(shards / name) for name in sets],
        selection=read_part(shards / settings.selection),
        training=read_part(shards / "refine") if "refine" in names else None,
    )


def check_known_answers(part: Part, numbers: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Compare the base model's numbers with those that the set pins for it, if it does.

    Args:
        part: The set; its manifest may hold `known_answers`, see `sources.known_answers`.
        numbers: What was measured on it, see `flat_metrics`.
        facts: Of the model.

    Raises:
        UserError: A number is farther from its known answer than the tolerance, or is not measured.
    """
    known = part.manifest.get("known_answers") or {}
    own = [(name, answer) for name, answers in known.items() for answer in answers if _is_for(answer["model"], facts)]
    for name, answer in own:
        if name not in numbers:
            raise UserError(f"{part.name}: known answers: no metric {name!r}; there are {', '.join(numbers)}")
        if not abs(numbers[name] - answer["value"]) <= answer["tolerance"]:
            raise UserError(
                f"{part.name}: the base model scores {name} {numbers[name]:.6g}, its known answer is "
                f"{answer['value']:g} ± {answer['tolerance']:g}; check weights, preprocessing, prompts and data, or "
                "mend the known answer beside the set"
            )
    if known:
        log.info("%s: %d known answers met, of %d in its file", part.name, len(own), sum(map(len, known.values())))


def _is_for(named: str | None, facts: Mapping[str, Any]) -> bool:
    """Whether a known answer is that of the model with these `facts`."""
    source = facts.get("source") or {}
    return (
        named is None
        or facts["weights_digest"].startswith(named)
        or (source.get("kind") == "open_clip" and named == f"{source['model']}/{source['pretrained']}")
    )
