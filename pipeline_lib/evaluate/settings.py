"""Section `evaluate` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Share, section
from pipeline_lib.results.certainty import Certainty


@section("evaluate")
class EvaluateSettings(Certainty):
    """What is measured; how sure it is stands in the class above."""

    batch_size: AtLeastOne
    """Images or texts per forward pass."""

    recall_at: tuple[AtLeastOne, ...]
    """The k of R@k; R@1 is measured in any case."""

    prompt: str
    """Single zero-shot prompt, with {} for the class name."""

    ensemble: Literal["set", "openai", "both"]
    """Templates of the ensemble: the set's own where it has them, or open_clip's 80 for ImageNet; both: the latter
    beside the former, as `imagenet`.
    """

    selection: str
    """Part on which recipe, weights and mix are to be chosen: none that a model was trained on."""

    linear_probe: bool
    """True: a linear classifier on the frozen image features, wherever there are labels."""

    wise_ft: tuple[Share, ...]
    """Mixes between base (0) and refined (1) weights to evaluate; empty: none."""
