"""The student as its inputs are made: the base itself, or its image tower joined with a language model."""

from __future__ import annotations

from typing import Any

import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.paths import LANGUAGE, Paths
from pipeline_lib.model import Clip
from pipeline_lib.model.adapter import Shape


def load_student(
    paths: Paths,
    device: torch.device | str = "cpu",
    *,
    adapter: Shape | None = None,
    seed: int = 0,
    logit_scale: float | None = None,
) -> tuple[Clip, Clip]:
    """Load the base and, from its image tower, the student; both are one where no language model reads captions.

    Args:
        paths: Where base and language model are.
        device: Where to put the weights.
        adapter: Of the student; without one its texts give the language model's own features.
        seed: Of the adapter's weights.
        logit_scale: Multiplier on cosines to begin with, in place of the base's.

    Raises:
        UserError: A folder is missing, or was changed after it was written.
    """
    base = model.load(paths.base, device=device)
    if paths.has_language:
        manifest = read_language(paths)
        for name in manifest["files"]:
            artifacts.check_file(paths.text, name, manifest)
        facts = manifest["language"]
        return base, model.join(base, paths.text, facts, adapter, seed=seed, logit_scale=logit_scale)
    if logit_scale is not None:
        base.module.logit_scale.data.fill_(logit_scale).log_()
    return base, base


def read_language(paths: Paths) -> dict[str, Any]:
    """Return the manifest of the language model; `load_student` compares its files with it.

    Raises:
        UserError: The folder is missing or unfinished.
    """
    return artifacts.read_manifest(paths.text, stage=LANGUAGE)
