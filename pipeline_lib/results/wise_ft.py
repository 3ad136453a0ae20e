"""The curve between base and refined weights (WiSE-FT): headlines by mix, and the mix that is best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline_lib.results.folders import Evaluation, Variant

# mix, change of mean zero-shot top-1, change of mean log rank, in points; None: not among the headlines
Curve = list[tuple[float, float | None, float | None]]
AXES = (("zero_shot",), ("log_rank", "recall"))  # kinds of headlines: the two axes of the curve; others are on none


def wise_curve(base: Evaluation, refined: Evaluation, sets: Sequence[str]) -> Curve:
    """Return the WiSE-FT sweep on `sets` against the base, both ends included, by mix.

    Empty where there is no sweep, or `sets` have no headlines of these kinds; others, such as choices, are on no axis.
    """
    measures = [measure for name in sets for measure in Variant(base).headlines(name)]
    models: dict[float, dict[str, dict[str, float]]] = {
        mix: {name: {m.key: m.value for m in Variant(end).headlines(name)} for name in sets}
        for mix, end in ((0.0, base), (1.0, refined))
    }
    models |= {float(row["mix"]): row["sets"] for row in refined.results.get("wise_ft") or []}
    curve: Curve = []
    for mix, scores in sorted(models.items()):
        zero_shot, retrieval = (
            _mean([100 * (scores[m.set_name][m.key] - m.value) for m in measures if m.kind in kinds]) for kinds in AXES
        )
        if zero_shot is None and retrieval is None:
            return []
        curve.append((mix, zero_shot, retrieval))
    return curve if len(curve) > 2 else []


def _mean(changes: Sequence[float]) -> float | None:
    return float(np.mean(changes)) if changes else None


def best_mix(curve: Curve) -> float:
    """Return the mix with the largest mean of the changes that were measured; among equals the nearest to the base."""
    return max(curve, key=lambda point: (round(sum(x for x in point[1:] if x is not None), 9), -point[0]))[0]
