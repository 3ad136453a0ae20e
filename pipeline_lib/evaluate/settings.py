"""Section `evaluate` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Share, section
from pipeline_lib.results.certainty import Certainty


@section("evaluate")
class EvaluateSettings(Certainty):
    """What is measured, and how sure intervals and tests are."""

    batch_size: AtLeastOne
    """Number of images or texts in a forward pass."""

    recall_at: tuple[AtLeastOne, ...]
    """The values of k for which R@k is measured. R@1 is measured in any case."""

    prompt: str
    """Prompt of the zero-shot scores marked `1 prompt`, with {} where the class name goes."""

    ensemble: Literal["set", "openai", "both"]
    """Templates of the zero-shot ensemble. `set` takes the set's own where it has them and open_clip's 80 for ImageNet
    elsewhere, `openai` takes the latter everywhere, and `both` measures them beside the set's own, as `imagenet`.
    """

    selection: str
    """Part or set on which recipe, weights and mix are to be chosen. It must be none that a model was trained on."""

    linear_probe: bool
    """True trains a linear classifier on the frozen image features wherever there are labels."""

    wise_ft: tuple[Share, ...]
    """Mixes of base and refined weights that are evaluated, each the share of the refined weights: 0.5 is half and
    half. An empty list evaluates none.
    """
