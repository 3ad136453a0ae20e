"""The few-shot curves of base and refined: their figure, and every point with the paired difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.report import figures, page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Cell, Drawing, Row, Table, Text
from pipeline_lib.results.measure import FEW_SHOT
from pipeline_lib.results.paired import Paired

Points = Mapping[tuple[str, int], Paired]  # of a task, by method and shots
METHODS = ("gda", "probe")


def show_curves(inputs: ReportInputs) -> tuple[Any, ...]:
    """Show the few-shot curves of both models; nothing where there are none."""
    curves: dict[tuple[str, str], dict[tuple[str, int], Paired]] = {}
    for row in inputs.few_shot:
        curves.setdefault((row.before.set_name, row.before.task), {})[row.before.method, row.before.shots] = row
    if not curves:
        return ()
    explain = (
        "What a few labelled images of each class add on the frozen features: to the prompts (GDA, Gaussian "
        "discriminant analysis), and by themselves (a logistic probe). Without images GDA is zero-shot. With one of "
        "each class it still is, since one image shows no spread within its class."
    )
    lines = {f"{name}: {task}": _lines(points) for (name, task), points in curves.items()}
    return Text(explain), Drawing(figures.few_shot_curves(lines)), _table(inputs, curves)


def _lines(points: Points) -> dict[str, dict[str, dict[int, float]]]:
    """Return model -> method -> shots -> accuracy; GDA begins with zero-shot."""
    lines: dict[str, dict[str, dict[int, float]]] = {}
    for (method, shots), row in points.items():
        for model, measure in (("base", row.before), ("refined", row.after)):
            line = FEW_SHOT["gda" if method == "zero_shot" else method]
            lines.setdefault(model, {}).setdefault(line, {})[shots] = measure.value
    return lines


def _table(inputs: ReportInputs, curves: Mapping[tuple[str, str], Points]) -> Table:
    rows: list[Row] = []
    for (name, task), points in curves.items():
        rows.append(page.group(f"{name}: {task}"))
        rows.append(Row((Cell("none (zero-shot)"), *_cells(points["zero_shot", 0]), Cell("–"), Cell("–"))))
        for shots in sorted({shots for _, shots in points} - {0}):
            cells = (cell for method in METHODS for cell in _cells(points[method, shots]))
            rows.append(Row((Cell(str(shots)), *cells)))
    draws = inputs.parameters["evaluate"]["few_shot"]["draws"]
    missing = "; ".join(text for name, task in curves if (text := _missing(inputs, name, task)))
    fewer = f" Classes with fewer: {missing}." if missing else ""
    return Table(
        ("images per class, top-1 in %", "GDA", "difference", FEW_SHOT["probe"], "difference"),
        tuple(rows),
        note=f"Base → refined, means over {draws} draws of the images, the same for both models. In small type: paired "
        f"{page.level(inputs.certainty.confidence)} bootstrap intervals over the test images; they do not cover which "
        f"images were drawn. None of these is a headline or tested.{fewer}",
    )


def _cells(row: Paired) -> tuple[Cell, Cell]:
    ends = (page.points(row.difference.low), page.points(row.difference.high))
    values = f"{page.percent(row.before.value)} → {page.percent(row.after.value)}"
    return Cell(values), Cell(page.points(row.difference.value), ends)


def _missing(inputs: ReportInputs, name: str, task: str) -> str:
    """Say how many classes have fewer images than the most shots, and none; empty if all have enough."""
    facts = inputs.refined.results["few_shot"][name][task]
    shots, short = max((int(shots), short) for shots, short in facts["short"].items())
    if not short:
        return ""
    none = f", {facts['absent']} of them none" if facts["absent"] else ""
    return f"{name}: {task} at {shots} images {short} of {facts['num_classes']}{none}"
