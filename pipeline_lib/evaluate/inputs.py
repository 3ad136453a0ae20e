"""What a model is evaluated on, the model itself, and the guard: one refined from this base."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.shards import Part, evaluated_sets, read_part
from pipeline_lib.evaluate.settings import EvaluateSettings

log = logging.getLogger(__name__)
OF_TEXTS = ("tokenizer_digest", "config_digest")
LIKE_BASE = ("preprocess", "quick_gelu", "tokenizer_digest", "config_digest")  # refinement changes weights only


@dataclass(frozen=True)
class EvaluationInputs:
    """What a model is evaluated on."""

    sets: Sequence[Part]
    selection: Part  # choices are made on it
    training: Part | None = None  # its means centre the mean-centred variant; it trains the linear probe, with
    # `selection` to choose the strength, if both carry labels
    base_weights: Mapping[str, torch.Tensor] | None = None  # of the other end of the WiSE-FT sweep
    base_scale: float | None = None  # logit scale of the base, of a refined model

    @property
    def all_sets(self) -> list[Part]:
        """Return the selection part and the sets."""
        return [self.selection, *self.sets]


class Opened(NamedTuple):
    """A model, and for the refined one what it is compared with of the base that it came from."""

    clip: model.Clip
    base_weights: Mapping[str, torch.Tensor] | None = None  # None where there is nothing between two text sides
    base_scale: float | None = None


def open_model(name: str, paths: Paths, device: torch.device) -> Opened:
    """Load the model `name`, and for the refined one the weights of the base model that it came from.

    No weights where a language model reads its texts: there is nothing between two text sides.

    Raises:
        UserError: A model is missing or unfinished or not what its manifest says, or the refined one came from another
            base model or has other preprocessing, activation or tokenizer.
    """
    folder, stage = {"base": (paths.base, "base"), "refined": (paths.refined, "refine")}[name]
    artifacts.read_manifest(folder, stage=stage)  # never another model in its place
    clip = model.load(folder, device=device)
    if name == "base":
        return Opened(clip)
    base = model.load(paths.base, device=device)
    if clip.facts.get("refined_from") != base.facts["weights_digest"]:
        raise UserError(f"{folder}: was not refined from the model in {paths.base}; run `dvc repro refine`")
    joined = isinstance(clip, model.JoinedClip)  # other texts, the same images
    alike = [key for key in LIKE_BASE if not joined or key not in OF_TEXTS]
    differing = [key for key in alike if clip.facts.get(key) != base.facts.get(key)]
    if differing:
        raise UserError(
            f"{folder}: {', '.join(differing)} differ from what {paths.base} recorded, so the two cannot be compared; "
            "run `dvc repro -f refine`"
        )
    if joined:
        log.info("%s: texts go through a language model, so nothing lies between base and refined weights", folder)
    return Opened(clip, None if joined else base.module.state_dict(), base.logit_scale.item())


def open_inputs(shards: Path, settings: EvaluateSettings) -> EvaluationInputs:
    """Read the parts and sets below `shards` that a model is evaluated on, from the manifest of the whole folder.

    Raises:
        UserError: The folder is missing or unfinished, there is nothing to evaluate on or to select on.
    """
    names = list(artifacts.read_manifest(shards, stage="shard")["parts"])
    sets = evaluated_sets(names, settings.selection, str(shards))
    return EvaluationInputs(
        sets=[read_part(shards / name) for name in sets],
        selection=read_part(shards / settings.selection),
        training=read_part(shards / "refine") if "refine" in names else None,
    )
