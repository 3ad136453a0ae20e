"""The reader of evaluation folders: the measures of every set, in each variant, and the items behind them.

A folder is what the evaluate stage wrote to data/eval/<model>/. Variants are the features as they are (`plain`) and
mean-centred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.measure import FORMAT, Measure
from pipeline_lib.results.statistics import Mean

Array = np.ndarray[Any, Any]
PLAIN, CENTRED = "plain", "mean_centred"


def array_name(name: str, variant: str) -> str:
    """Return the name in items/<set>.safetensors of a per-item array of a variant.

    >>> array_name("image_to_text_hit_at_1", PLAIN), array_name("image_to_text_hit_at_1", CENTRED)
    ('image_to_text_hit_at_1', 'mean_centred.image_to_text_hit_at_1')
    """
    return name if variant == PLAIN else f"{variant}.{name}"


class Evaluation:
    """One folder of the evaluate stage, arrays read when asked for."""

    def __init__(self, directory: Path) -> None:
        """Read results.json and the manifest.

        Raises:
            UserError: The folder is missing, unfinished or changed, or was written by another stage or version.
        """
        self.directory = directory
        self.manifest = artifacts.read_manifest(directory, stage="evaluate")
        artifacts.check_file(directory, "results.json", self.manifest)
        self.results: dict[str, Any] = artifacts.read_json(directory / "results.json")
        if self.results.get("format") != FORMAT:
            raise UserError(f"{directory}: results.json is in the format of another version; run `dvc repro`")
        self.items = cache(lambda name: self._load(f"items/{name}.safetensors"))
        self.features = cache(lambda name: self._load(f"features/{name}.safetensors"))

    def _load(self, name: str) -> dict[str, Array]:
        artifacts.check_file(self.directory, name, self.manifest)
        return load_file(self.directory / name)

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """Return the results by evaluation set."""
        return self.results["sets"]

    @property
    def selection(self) -> dict[str, dict[str, Any]]:
        """Return the results of the part on which choices are made (val)."""
        return self.results.get("selection") or {}

    @property
    def all_sets(self) -> dict[str, dict[str, Any]]:
        """Return both, the selection part first."""
        return {**self.selection, **self.sets}


@dataclass(frozen=True)
class Variant:
    """An evaluation as it is, or after mean-centring: what is compared."""

    evaluation: Evaluation
    name: str = PLAIN

    def block(self, set_name: str, name: str) -> Any:
        """Return `measures`, `retrieval_distinct`, `classes` or `gap` of a set; empty where it was not measured."""
        return self.evaluation.all_sets[set_name]["variants"].get(self.name, {}).get(name) or {}

    def measures(self, set_name: str) -> list[Measure]:
        """Return everything measured on a set but linear probes and the gap, the template ensemble before others."""
        return [Measure.read(set_name, stored) for stored in self.block(set_name, "measures")]

    def headlines(self, set_name: str) -> list[Measure]:
        """Return the measures that the verdict names."""
        return [measure for measure in self.measures(set_name) if measure.is_headline]

    def distinct(self, set_name: str) -> list[Measure]:
        """Return retrieval without repeated images and captions; empty where nothing repeats."""
        stored = self.block(set_name, "retrieval_distinct").get("measures", [])
        return [Measure.read(set_name, one) for one in stored]

    def probes(self, set_name: str) -> Iterator[Measure]:
        """Yield the linear probes on a set, one per task; they are on the features as they are in any variant."""
        for probe in (self.evaluation.results.get("linear_probe") or {}).get(set_name, {}).values():
            yield Measure.read(set_name, probe["measure"])

    def few_shot(self, set_name: str) -> Iterator[Measure]:
        """Yield the points of the few-shot curves on a set, task by task, in the order of their shots."""
        for curves in (self.evaluation.results.get("few_shot") or {}).get(set_name, {}).values():
            yield from (Measure.read(set_name, stored) for stored in curves["measures"])

    def array(self, set_name: str, name: str) -> Array:
        """Return a per-item array of this variant."""
        return self.evaluation.items(set_name)[array_name(name, self.name)]

    def mean(self, measure: Measure) -> Mean:
        """Return the items behind a measure: their values, the image of each, and for a mean over classes its class.

        Images of one content are one, under the number of the first of them.
        """
        values = self.array(measure.set_name, measure.items).astype(np.float64)
        items = self.evaluation.items(measure.set_name)  # images and classes of items are the same in every variant
        if measure.image_index:
            index = items[measure.image_index]
        else:
            index = items["text_image_index"] if measure.unit == "caption" else np.arange(len(values))
        return Mean(values, items["image_unit"][index], items[measure.group] if measure.group else None)
