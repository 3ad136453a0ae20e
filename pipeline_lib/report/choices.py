"""What choices between texts and images show: each score with its chance, on all of a set's choices and by group."""

from __future__ import annotations

from typing import Any

from pipeline_lib.report import page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Cell, Fold, Row, Table
from pipeline_lib.report.tables import paired_row
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.paired import Paired


def show_groups(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return a table per set of choices, folded; nothing without such a set."""
    by_set = {name: [row for row in inputs.comparison if row.before.set_name == name] for name in inputs.sets}
    tables = [
        _table(inputs, name, [row for row in rows if row.before.kind == "choice"]) for name, rows in by_set.items()
    ]
    shown = tuple(table for table in tables if table.rows)
    return (Fold("Choices, with their chance and by group", shown),) if shown else ()


def _table(inputs: ReportInputs, name: str, comparison: list[Paired]) -> Table:
    counts = inputs.parts[name].manifest.get("choices", {})
    return Table(
        (f"{name}, percent", "choices", "chance", "base", "refined", "difference"),
        tuple(_row(inputs, row) for row in comparison),
        note=f"{counts.get('left_out', 0):,} of {counts.get('read', 0):,} choices were left out with an image or for a "
        f"text; {counts.get('unanswerable', 0):,} have the same on both sides, which every model gets wrong. Chance: "
        "what random features reach. Ties are wrong. Groups are not tested, and small ones vary widely.",
    )


def _row(inputs: ReportInputs, row: Paired) -> Row:
    label, base, refined, difference, _ = paired_row(row).cells
    count = len(Variant(inputs.base).array(row.before.set_name, row.before.items))
    cells = (label, Cell(f"{count:,}"), Cell(page.percent(row.before.floor)), base, refined, difference)
    return Row(cells, "plain" if row.before.task else "strong")
