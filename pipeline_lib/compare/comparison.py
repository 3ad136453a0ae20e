"""The comparison as tables and as a page: verdict, ranking, figures, the equations of the recipes, the runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_lib.compare.board import MEAN_CENTRED, Board, Entry
from pipeline_lib.refine import recipes
from pipeline_lib.report import figures, page
from pipeline_lib.report.page import Cell, Drawing, Fold, Page, Row, Section, Table, Text
from pipeline_lib.results.folders import CENTRED, Variant

HTML, MARKDOWN = "comparison.html", "comparison.md"
MINUS_BASE = "minus base"


def table(board: Board, name: str) -> Table:
    """Return every group on one set, best first, below the base models and their mean-centred variants."""
    keys = board.keys(name)
    rows = _baselines(board, name)
    for group in board.ranked:
        entries = board.entries[name][group.label]
        gap = [_gap(Variant(candidate.refined), name) for candidate in group.candidates]
        cells = (_entry(entries[key]) for key in keys)
        rows.append(
            Row((Cell(group.label), Cell(str(len(group.candidates))), *cells, Cell(_mean_number(gap))), "strong")
        )
    return Table(
        (f"{name}, %", "seeds", *keys.values(), "gap"),
        tuple(rows),
        note="Mean ± standard deviation over seeds; in small type the "
        f"{page.level(board.settings.confidence)} interval of the difference from base over images, with the seeds "
        "averaged. A triangle: the difference is measurable after Holm's correction over this table. Gap: centroid "
        "distance.",
    )


def _baselines(board: Board, name: str) -> list[Row]:
    """Return the base, and the base mean-centred where it was measured; one line each for every distinct base model."""
    keys = board.keys(name)
    rows = []
    for suffix, base in board.bases.items():
        plain, centred = Variant(base), Variant(base, CENTRED)
        values = {m.key: m.value for m in plain.headlines(name)}
        cells = [Cell(page.percent(values[key])) for key in keys]
        rows.append(Row((Cell(f"base{suffix}"), Cell("–"), *cells, Cell(page.number(_gap(plain, name))))))
        label = MEAN_CENTRED + suffix
        if entries := board.entries[name].get(label):
            cells = [_entry(entries[key]) for key in keys]
            rows.append(Row((Cell(label), Cell("–"), *cells, Cell(page.number(_gap(centred, name))))))
    return rows


def _entry(entry: Entry) -> Cell:
    spread = "" if entry.spread is None else f" ± {page.percent(entry.spread)}"
    ends = (page.points(entry.difference.low), page.points(entry.difference.high))
    return Cell(page.percent(entry.mean) + spread, ends, "" if entry.verdict == "still" else entry.verdict)


def _gap(variant: Variant, name: str) -> float | None:
    return variant.block(name, "gap").get("centroid_distance")


def _mean_number(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    spread = f" ± {page.number(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    return (page.number(float(np.mean(known))) if known else "–") + spread


def comparison_page(board: Board) -> Page:
    """Compose the page: ranking, tables, the grid, the recipes' equations, the runs."""
    tables = [Section(_heading(board, name), (table(board, name), *_drawing(board, name))) for name in board.sets]
    sections = (
        Section("Ranking", (Text(verdict(board), lead=True), Text(ranked_on(board)))),
        *tables,
        Section("The grid", (_grid(board),)),
        Section("The recipes", (_equations(board),)),
        Section("Runs", (Fold("Every run", (_runs(board),)),)),
    )
    count = sum(len(group.candidates) for group in board.groups)
    return Page("Configurations compared", f"{len(board.groups)} configurations, {count} runs", sections)


def verdict(board: Board) -> str:
    """Say which configuration is first, by how much, and how much of that is measurable."""
    best = board.ranked[0]
    sets, others = ", ".join(board.ranking_sets), [name for name in board.sets if name not in board.ranking_sets]
    text = (
        f"`{best.label}` is first on {sets}: {page.points(board.score(best))} points against base in the mean, "
        f"{board.moved(best, board.ranking_sets)}"
    )
    if len(board.ranked) > 1:
        second = board.ranked[1]
        text += f"; next is `{second.label}` with {page.points(board.score(second))}"
    return f"{text}." + (f" On {', '.join(others)}, {board.moved(best, others)} with it." if others else "")


def ranked_on(board: Board) -> str:
    """Say on which split the ranking was made, and what that means for the numbers."""
    sets = ", ".join(board.ranking_sets)
    if board.is_honest:
        return (
            f"Ranked on {sets}, by the mean difference from base over its headlines. Choose there; the evaluation sets "
            "below follow in that order and took no part in it."
        )
    return (
        f"Ranked on the evaluation sets themselves ({sets}), because no selection part was evaluated by all: the best "
        "of many looks better than it is. Choose on other images, or confirm on new ones."
    )


def _heading(board: Board, name: str) -> str:
    return f"{name}, ranked on" if name in board.ranking_sets else f"{name}, in the same order"


def _drawing(board: Board, name: str) -> tuple[Drawing, ...]:
    if not board.keys(name):
        return ()
    panels = {
        label: [board.entries[name][group.label][key].drawn(group.label) for group in board.ranked]
        for key, label in board.keys(name).items()
    }
    return (Drawing(figures.ablation(name, panels, confidence=page.level(board.settings.confidence))),)


def _grid(board: Board) -> Table:
    keys = list(dict.fromkeys(key for group in board.ranked for key in group.varied if key != "refine.recipe"))
    rows = {
        group.label: [
            *(str(group.candidates[0].configuration.get(key, "–")) for key in keys),
            ", ".join(str(candidate.seed) for candidate in group.candidates),
            page.points(board.score(group)) + _spread(board.scores(group)),
        ]
        for group in board.ranked
    }
    return page.grid(
        ("configuration", *keys, "seeds", f"mean {MINUS_BASE}, points"),
        rows,
        note="Only the parameters that differ; all others are the same in every row. The mean is over the headlines of "
        f"{', '.join(board.ranking_sets)}, ± the standard deviation over seeds.",
    )


def _spread(scores: Sequence[float]) -> str:
    return f" ± {page.percent(float(np.std(scores, ddof=1)))}" if len(scores) > 1 else ""


def _equations(board: Board) -> Table:
    used = dict.fromkeys(group.candidates[0].recipe for group in board.ranked)
    rows = {name: [(recipes.RECIPES[name].__doc__ or "").split("\n")[0]] for name in used if name in recipes.RECIPES}
    return page.grid(
        ("recipe", "loss"),
        rows,
        text_columns=(0, 1),
        note="f, g: raw image and text features of the student; F, G: of the frozen teacher; a hat: divided by the "
        "norm; s = f gᵀ, S = F Gᵀ; z: random reference, one per pair. RaFA = mean((f − z)²) + mean((g − z)²); HyCD = "
        "T² KL(α I + (1 − α) softmax(S/T) ‖ softmax(s/T)) and InfoNCE = cross-entropy of the diagonal, both as the "
        "mean of the two directions.",
    )


def _runs(board: Board) -> Table:
    rows = {
        candidate.name: [group.label, str(candidate.seed), f"`{candidate.refined.results['weights_digest'][:16]}`"]
        for group in board.ranked
        for candidate in group.candidates
    }
    return page.grid(("run", "configuration", "seed", "weights"), rows, text_columns=(0, 1, 3))


def terminal_table(board: Board) -> str:
    """Render the ranking and its table as plain text, intervals left out."""
    parts = [textwrap.fill(page.plain_text(text), 100) for text in (verdict(board), ranked_on(board))]
    for name in board.sets:
        wide = table(board, name)
        rows = tuple(Row(tuple(Cell(cell.text) for cell in row.cells)) for row in wide.rows)
        parts.append(page.to_terminal(replace(wide, rows=rows)))
    return "\n\n".join(parts)


def write_comparison(board: Board, target: Path) -> Page:
    """Write comparison.html, comparison.md and the images of the latter to the folder `target`."""
    document = comparison_page(board)
    page.write_page(document, target, stage="compare", html=HTML, markdown=MARKDOWN)
    return document
