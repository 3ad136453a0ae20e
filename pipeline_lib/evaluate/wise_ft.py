"""Models between the base and the refined one, by their weights: often most of the gain for little of the loss.

Source: WiSE-FT, Wortsman et al., CVPR 2022, arXiv 2109.01903.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch

from pipeline_lib.core.errors import UserError
from pipeline_lib.evaluate import scoring
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.inputs import EvaluationInputs
from pipeline_lib.evaluate.measured import Block, headline_values, metric_values
from pipeline_lib.evaluate.settings import EvaluateSettings

log = logging.getLogger(__name__)


def sweep(embedder: Embedder, inputs: EvaluationInputs, settings: EvaluateSettings) -> list[Block]:
    """Evaluate every set with weights between base and refined, without intervals; the two models are its ends."""
    if inputs.base_weights is None or not settings.wise_ft:
        return []
    module = embedder.clip.module
    refined = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows = []
    try:
        for mix in settings.wise_ft:
            log.info("evaluating %.0f %% refined, %.0f %% base", 100 * mix, 100 * (1 - mix))
            module.load_state_dict(interpolate(inputs.base_weights, refined, mix))
            mixed = dataclasses.replace(embedder, kept=embedder.kept and embedder.kept / f"mix_{mix:g}")
            embedded = [mixed.embed(part) for part in inputs.all_sets]
            if embedder.world.is_main:
                rows.append({"mix": mix, **score_mix(embedded, settings)})
    finally:
        module.load_state_dict(refined)
    return rows


def score_mix(embedded: Sequence[EmbeddedSet], settings: EvaluateSettings) -> Block:
    """Score the sets that a mix has embedded: {"sets": {set: headlines}, "metrics": {set: all scores}}."""
    row: Block = {"sets": {}, "metrics": {}}
    for one in embedded:
        block, _ = scoring.score(one, settings)
        measures = [measured.measure for measured in block["measures"]]
        row["sets"][one.name] = headline_values(measures)
        row["metrics"][one.name] = metric_values(measures, block["gap"])
    return row


def interpolate(
    base: Mapping[str, torch.Tensor], refined: Mapping[str, torch.Tensor], mix: float
) -> dict[str, torch.Tensor]:
    """Return (1 − mix) · base + mix · refined, tensor by tensor; what is not floating point stays the refined model's.

    Raises:
        UserError: The two do not have the same tensors.
    """
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in refined.items()}:
        raise UserError(
            "WiSE-FT: base and refined model have different tensors; run `dvc repro`, or evaluate.wise_ft: []"
        )
    return {
        name: torch.lerp(base[name], tensor, mix) if tensor.is_floating_point() else tensor
        for name, tensor in refined.items()
    }
