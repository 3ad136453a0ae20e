"""One number of an evaluated set that says what it is: written where it is measured, read by everything that shows it.

Nothing parses a key or a label. Whatever a table, a test or a model card needs to know of a number is an attribute of
its `Measure`, which results.json stores; see `Measure.stored` for an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pipeline_lib.results.statistics import Interval

FORMAT = 4  # of results.json; before the fourth, a set without cut texts was like one whose texts nobody had counted
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}  # of retrieval, and how each reads

FEW_SHOT = {"zero_shot": "zero-shot", "gda": "GDA", "probe": "logistic probe"}  # methods, and how each reads

Kind = Literal[
    "log_rank",
    "recall",
    "caption_recall",
    "rank",
    "zero_shot",
    "calibration",
    "temperature",
    "linear_probe",
    "few_shot",
    "choice",
]
Unit = Literal["image", "caption"]


@dataclass(frozen=True)
class Measure:
    """What was measured on a set: a value, how sure it is, what it is, and where the items lie that it is the mean of.

    Names of arrays are those of items/<set>.safetensors, without the variant.
    """

    set_name: str
    """Evaluation set or selection part."""

    key: str
    """Name of the metric in DVC's and MLflow's tables, where the set's name stands before it."""

    label: str
    """How it reads in tables and figures, without the set and without a unit."""

    kind: Kind
    """What sort of number it is."""

    value: float
    """The number itself; shares between 0 and 1, not percent."""

    low: float | None = None
    """Lower end of its confidence interval; None: it has none."""

    high: float | None = None
    """Upper end of its confidence interval; None: it has none."""

    is_share: bool = True
    """True: a share, which is shown in percent. False: a plain number, such as a rank."""

    is_headline: bool = False
    """True: the verdict names it. All headlines of one comparison share Holm's correction."""

    is_metric: bool = True
    """True: DVC's and MLflow's tables hold it. False: results.json and the report alone."""

    is_tested: bool = False
    """True: two models are tested by it, with exact sign flips by image; for one item an image, of 0 and 1, that is
    McNemar's exact test. False: a difference has an interval and no test.
    """

    chance: float | None = None
    """What answers by lot give; None: not known."""

    commonest: float | None = None
    """What always the same answer gives, the best one: of an accuracy, the commonest class; None: not known."""

    agrees_with: str = ""
    """Key of the measure that must rise with it, measurably, before a rise counts; empty: none must."""

    not_against: str = ""
    """Key of the measure that must not fall measurably where a rise counts, nor rise where a fall does; empty: none."""

    unit: Unit = "image"
    """What each of its items is. Captions are resampled with their image."""

    items: str = ""
    """Array of the values that it is the mean of; empty: they are not kept, so that models are not compared by it."""

    image_index: str = ""
    """Array with the image of each item, where not every image is one; empty: all images or captions, in order."""

    group: str = ""
    """Array with the class of each item, for a mean of class means; empty: the plain mean."""

    direction: str = ""
    """Of retrieval: a key of `DIRECTIONS`."""

    k: int = 0
    """Of a recall: how many places count."""

    num_candidates: int = 0
    """Of a recall among captions: among how many is searched."""

    task: str = ""
    """Of a classification: the name of the task. Of a choice: the group that it is measured on; empty: on all."""

    prompt: str = ""
    """Of a zero-shot classification: `ensemble`, `single` or `imagenet`."""

    score: str = ""
    """Of a zero-shot classification or a choice: what is measured, such as `top1` or `image_pairs_text_score`."""

    method: str = ""
    """Of a few-shot classification: a key of `FEW_SHOT`."""

    shots: int = 0
    """Of a few-shot classification: how many images of each class it learned from."""

    @classmethod
    def read(cls, set_name: str, stored: Mapping[str, Any]) -> Measure:
        """Build a measure of a set from what results.json holds of it."""
        return cls(set_name, **stored)

    def stored(self) -> dict[str, Any]:
        """Return what results.json holds: every field that is not its default, and not the set, which stands above.

        >>> Measure("eval", "image_to_text_recall_at_5", "image → text R@5", "recall", 0.5, k=5).stored()
        {'key': 'image_to_text_recall_at_5', 'label': 'image → text R@5', 'kind': 'recall', 'value': 0.5, 'k': 5}
        """
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if name != "set_name" and value != default}

    @property
    def name(self) -> str:
        """Return `set: label`, as figures and sentences name it."""
        return f"{self.set_name}: {self.label}"

    @property
    def floor(self) -> float:
        """Return what no model at all reaches: by lot, or by always the same answer. 0 where neither is known."""
        return max(self.chance or 0.0, self.commonest or 0.0)

    @property
    def has_interval(self) -> bool:
        """Return whether a confidence interval was measured."""
        return self.low is not None

    @property
    def interval(self) -> Interval:
        """Return the value with the ends of its confidence interval.

        Raises:
            ValueError: It has none.
        """
        if self.low is None or self.high is None:
            raise ValueError(f"{self.name} has no interval")
        return Interval(self.value, self.low, self.high)
