"""Section `evaluate` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, Share, block, section
from pipeline_lib.results.certainty import Certainty


@block
class FewShotSettings:
    """How many labelled images per class are learned from, and how often they are drawn."""

    shots: tuple[AtLeastOne, ...]
    """Numbers of images per class, the points of the curves beside zero-shot. An empty list measures none."""

    draws: AtLeastOne
    """How often the images are drawn. Scores are means over the draws, which are the same for base and refined."""


@section("evaluate")
class EvaluateSettings(Certainty):
    """What is measured, and how sure intervals and tests are."""

    batch_size: AtLeastOne
    """Number of images or texts in a forward pass; on a CPU at most 16 images or 32 texts."""

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

    few_shot: FewShotSettings | None
    """Few-shot curves wherever there are labels: Gaussian discriminant analysis on top of zero-shot, and a logistic
    probe, learned from a few images of each class. Null measures none.
    """

    wise_ft: tuple[Share, ...]
    """Mixes of base and refined weights that are evaluated, each the share of the refined weights: 0.5 is half and
    half. An empty list evaluates none.
    """

    @property
    def shots(self) -> tuple[int, ...]:
        """Return the points of the few-shot curves beside zero-shot, in their order; none where there are no curves."""
        return tuple(sorted({*self.few_shot.shots})) if self.few_shot else ()
