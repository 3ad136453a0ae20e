"""The numbers of an evaluation by name, without intervals: a DVC metrics file, and MLflow's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_lib.evaluate.measured import headline_values, metric_values
from pipeline_lib.results.folders import CENTRED, PLAIN
from pipeline_lib.results.measure import Measure

FLAT_GAP = ("centroid_distance", "alignment", "uniformity", "relative_modality_gap", "linear_separability")


def flat_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of every set by name, plain and (headlines and gap only) mean-centred: DVC's and MLflow's.

    Args:
        results: See `evaluation.evaluate`.
    """
    numbers = {}
    for name, one in {**results["sets"], **results["selection"]}.items():
        plain, centred = one["variants"][PLAIN], one["variants"].get(CENTRED)
        values = metric_values(read_measures(name, plain["measures"]), plain["gap"])
        probes_of_set = results.get("linear_probe", {}).get(name, {}).values()
        curves_of_set = results.get("few_shot", {}).get(name, {}).values()
        learned = [probe["measure"] for probe in probes_of_set]
        learned += [point for curves in curves_of_set for point in curves["measures"]]
        values |= metric_values(read_measures(name, learned), {})
        if centred is not None:
            also = headline_values(read_measures(name, centred["measures"]))
            also |= {key: value for key, value in centred["gap"].items() if key in FLAT_GAP}
            values |= {f"{CENTRED}_{key}": value for key, value in also.items()}
        numbers[name] = values
    return numbers


def read_measures(set_name: str, stored: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Read the measures of a set as `results.json` has them."""
    return [Measure.read(set_name, one) for one in stored]
