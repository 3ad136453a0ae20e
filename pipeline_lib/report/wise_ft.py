"""The curve between base and refined weights: its figure, the mix that would be chosen, its numbers."""

from __future__ import annotations

from typing import Any

from pipeline_lib.report import figures, page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Drawing, Fold, Text
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.wise_ft import Curve, best_mix, wise_curve


def show_curve(inputs: ReportInputs) -> tuple[Any, ...]:
    """Show the curve between base and refined, and the mix that the selection part chooses by whatever it measures."""
    selection, sets = list(inputs.refined.selection), ", ".join(inputs.sets)
    choosing, curve = (wise_curve(inputs.base, inputs.refined, names) for names in (selection, inputs.sets))
    if not _drawn(curve):
        return ()
    chosen = best_mix(choosing) if choosing else None
    drawn = {sets: _drawn(curve)} | {f"{', '.join(selection)} (to choose on)": _drawn(choosing)}
    return (
        Drawing(figures.wise_ft_curve({title: points for title, points in drawn.items() if points}, chosen=chosen)),
        Text(_chosen_mix(sets, curve, chosen, _chosen_by(choosing), ", ".join(selection))),
        Fold("The curve as numbers, against base", (_wise_table(inputs, curve),)),
    )


def _drawn(curve: Curve) -> list[tuple[float, float, float]]:
    """Return the points of a curve that measures both kinds of headlines, else none: one kind makes no plane."""
    return [(mix, x, y) for mix, x, y in curve if x is not None and y is not None]


def _chosen_by(choosing: Curve) -> str:
    """Return what a mix is chosen by, as it is said after `the best`; empty where it cannot be chosen."""
    if not choosing:
        return ""
    _, zero_shot, retrieval = choosing[0]
    return "zero-shot accuracy" if retrieval is None else "retrieval" if zero_shot is None else "mean of both"


def _chosen_mix(sets: str, curve: Curve, chosen: float | None, kind: str, selection: str) -> str:
    _, *changes = next(point for point in curve if point[0] == chosen) if chosen is not None else curve[0]
    gained = " and ".join(
        f"{page.points(change / 100)} points {name}"
        for change, name in zip(changes, ("zero-shot", "retrieval"), strict=True)
        if change is not None
    )
    if chosen is None:
        text = (
            "No mix is named the best: no other part measures zero-shot or retrieval to choose it by, and "
            f"{sets} should judge it, not choose."
        )
    elif chosen == 0:
        text = f"No mix has a better {kind} than the base itself (ringed), chosen on {selection}."
    elif chosen == 1:
        text = f"The refined model itself (ringed) has the best {kind}, chosen on {selection}: on {sets} {gained}."
    else:
        text = (
            f"The ringed mix, {chosen:g}, has the best {kind}, chosen on {selection}. On {sets} it gives {gained} "
            f"against base. `python -m pipeline_lib.export` with `--mix {chosen:g}` writes that model."
        )
    return f"{text} The points of the curve carry no intervals; on few images much of their scatter is luck."


def _wise_table(inputs: ReportInputs, curve: Curve) -> page.Table:
    """Return the sweep as numbers, the gap on the first set with captions among them."""
    name = inputs.with_captions[0]
    models = {0.0: inputs.base, 1.0: inputs.refined}
    gaps = {mix: Variant(end).block(name, "gap").get("centroid_distance") for mix, end in models.items()}
    sweep = inputs.refined.results.get("wise_ft") or []
    gaps |= {float(row["mix"]): row["metrics"][name].get("centroid_distance") for row in sweep}
    rows = {
        f"{mix:g}": [page.points(x / 100), page.points(y / 100), page.number(gaps[mix])] for mix, x, y in _drawn(curve)
    }
    header = ("share of refined weights", "zero-shot top-1, points", "retrieval log rank, points", "centroid distance")
    return page.grid(header, rows)
