"""What the loop wants to know of the teacher's features as a whole: their mean, deviation and mean norms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch

from pipeline_lib.core import artifacts

FILE = "statistics.safetensors"


def feature_statistics(units: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Compute mean and deviation [D] of the raw features over both modalities, and the mean norm of each modality."""
    rows = 0
    total = squares = torch.zeros(1, dtype=torch.float64)
    norms: dict[str, list[torch.Tensor]] = {"image_norm": [], "text_norm": []}
    for unit in units:
        pair = unit["image_features"][unit["valid"].bool()].double(), unit["text_features"].double()
        for name, features in zip(norms, pair, strict=True):
            rows += len(features)
            total = total + features.sum(0)
            squares = squares + features.square().sum(0)
            norms[name].append(features.norm(dim=-1))
    mean = total / max(1, rows)
    deviation = (squares / max(1, rows) - mean.square()).clamp_min(0).sqrt()
    means = {name: torch.cat(values).mean().float() for name, values in norms.items() if values}
    return {"mean": mean.float(), "std": deviation.float(), **means}


def write_statistics(teacher_directory: Path, statistics: dict[str, torch.Tensor]) -> None:
    """Write what `feature_statistics` computed to its place in the cache."""
    artifacts.write_bytes(teacher_directory / FILE, safetensors.torch.save(statistics))


def read_statistics(teacher_directory: Path) -> dict[str, torch.Tensor]:
    """Read the statistics of a cache, see `feature_statistics`; empty for a cache without features.

    Raises:
        UserError: The file is not the one that the manifest lists.
    """
    manifest = artifacts.read_manifest(teacher_directory)
    if FILE not in manifest["files"]:
        return {}
    artifacts.check_file(teacher_directory, FILE, manifest)
    return safetensors.torch.load_file(teacher_directory / FILE)
