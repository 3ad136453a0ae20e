"""The comparison as tables and as a page: verdict, ranking, figures, the equations of the recipes, the runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_lib.compare.board import Board, Rival
from pipeline_lib.compare.candidates import Group
from pipeline_lib.compare.entries import Entry
from pipeline_lib.compare.trade_off import show_trade_off
from pipeline_lib.refine import recipes
from pipeline_lib.report import figures, header, page
from pipeline_lib.report.page import Cell, Drawing, Fact, Fold, Page, Points, Row, Section, Table, Text, Tone
from pipeline_lib.results.conclusion import conclusion
from pipeline_lib.results.folders import Variant

HTML, MARKDOWN = "comparison.html", "comparison.md"
MINUS_BASE = "minus base"


def table(board: Board, name: str) -> Table:
    """Return every group on one set and what costs nothing, best first."""
    keys = board.keys(name)
    rows = [
        _rival_row(board, name, row) if isinstance(row, Rival) else _group_row(board, name, row)
        for row in board.ranked_rows
    ]
    found = [row for row in rows if row is not None]
    header = (f"{name}, %", "seeds", *keys.values(), "gap")
    note_on_gap = " Gap: centroid distance."
    if all(row.cells[-1].text == "–" for row in found):  # a set of classes has none
        header, found, note_on_gap = header[:-1], [replace(row, cells=row.cells[:-1]) for row in found], ""
    return Table(
        header,
        tuple(found),
        note="Mean ± standard deviation over seeds; in small type the "
        f"{page.level(board.settings.confidence)} interval of the difference from base, over images and, of several "
        "seeds, over seeds. A triangle: the difference is measurable after Holm's correction over this table, and the "
        f"number is above chance.{note_on_gap}",
    )


def _group_row(board: Board, name: str, group: Group) -> Row:
    entries = board.entries[name][group.label]
    gap = [_gap(Variant(candidate.refined), name) for candidate in group.candidates]
    cells = (_entry(entries[key]) for key in board.keys(name))
    return Row((Cell(group.label), Cell(str(len(group.candidates))), *cells, Cell(_mean_number(gap))), "strong")


def _rival_row(board: Board, name: str, rival: Rival) -> Row | None:
    """Return the line of what costs nothing; None where nothing is known of it on this set."""
    values = rival.values.get(name)
    if not values:
        return None
    entries = board.entries[name].get(rival.label, {})
    plain = {key: Cell(page.percent(values[key])) if key in values else Cell("–") for key in board.keys(name)}
    cells = [_entry(entries[key]) if key in entries else cell for key, cell in plain.items()]
    gap = _gap(Variant(rival.base, rival.variant), name) if rival.variant else None
    return Row((Cell(rival.label), Cell("–"), *cells, Cell(page.number(gap))))


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
        Section(
            "Ranking",
            (
                Text(verdict(board), lead=True),
                Text(ranked_on(board)),
                verdict_points(board),
                *show_trade_off(board),
            ),
        ),
        *tables,
        Section("The grid", (_grid(board),)),
        Section("The recipes", (_equations(board),)),
        Section("Runs", (Fold("Every run", (_runs(board),)),)),
    )
    count = sum(len(group.candidates) for group in board.groups)
    return Page("Configurations compared", f"{len(board.groups)} configurations, {count} runs", sections, _facts(board))


def _facts(board: Board) -> tuple[Fact, ...]:
    """Return what all configurations have alike."""
    candidates = [candidate for group in board.groups for candidate in group.candidates]
    bases = {header.asked_origin(candidate.parameters["base"]) for candidate in candidates}
    data = {header.data_place(candidate.parameters["data"]) for candidate in candidates}
    sizes = candidates[0].refined.all_sets
    return (
        Fact("base model", " or ".join(sorted(bases))),
        Fact("data", " or ".join(sorted(data))),
        Fact("evaluated on", header.name_sets({name: sizes[name] for name in board.sets})),
    )


def verdict(board: Board) -> str:
    """Say whether any configuration beats the base, which is first, and how much of that is measurable."""
    best = board.ranked[0]
    sets, others = ", ".join(board.ranking_sets), [name for name in board.sets if name not in board.ranking_sets]
    beating = [group for group in board.ranked if board.beats_base(group)]
    text = "" if beating else f"**{_none_beats(board)} the base measurably on {sets}.** "
    text += (
        f"{'First' if beating else 'Nearest'} is `{best.label}`: "
        f"{page.points(board.score(best))} points against base in the mean of the headlines, "
        f"{board.moved(best, board.ranking_sets)}"
    )
    if beating and best not in beating:
        text += (
            f". The first that beats the base, with no measurable fall, is `{beating[0].label}`: "
            f"{page.points(board.score(beating[0]))}, {board.moved(beating[0], board.ranking_sets)}"
        )
    elif len(board.ranked) > 1:
        second = board.ranked[1]
        text += f"; next is `{second.label}` with {page.points(board.score(second))}"
    free = [rival for rival in board.rivals if board.score(rival) > max(0.0, board.score(best))]
    ahead = "".join(f" {rival.label.capitalize()}, which is free, stands before all of them." for rival in free)
    return f"{text}.{ahead}" + (f" On {', '.join(others)}, {board.moved(best, others)} with it." if others else "")


def _none_beats(board: Board) -> str:
    return f"None of the {len(board.ranked)} configurations beats" if len(board.ranked) > 1 else "It does not beat"


def verdict_points(board: Board) -> Points:
    """Say for every configuration what the headlines of the evaluation sets did, over its seeds."""
    names = [name for name in board.sets if name not in board.ranking_sets] or board.ranking_sets
    return Points(tuple(_verdict_point(board, group, names) for group in board.ranked))


def _verdict_point(board: Board, group: Group, names: Sequence[str]) -> tuple[str, Tone]:
    seeds = len(group.candidates)
    text = f"`{group.label}`, {'one seed' if seeds == 1 else f'{seeds} seeds'}: "
    verdicts = board.verdicts(group, names)
    text += conclusion(verdicts)
    objections = dict.fromkeys(
        f"{entry.before.label}: {entry.objection}"
        for name in names
        for entry in board.entries[name][group.label].values()
        if entry.objection
    )
    text += "".join(f" Not counted: {one}." for one in objections)
    if seeds == 1:
        text += " What another seed would give is not known."
    tone: Tone = "still" if "rose" in verdicts and "fell" in verdicts else next(iter({*verdicts} - {"still"}), "still")
    return text, tone


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
    texts = [verdict(board), ranked_on(board), *(text for text, _ in verdict_points(board).items)]
    parts = [textwrap.fill(page.plain_text(text), 100) for text in texts]
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
