"""The ranking of configurations: on which set, by what, with which differences; as tables and as a page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline_lib.compare.candidates import Group
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.refine import recipes
from pipeline_lib.report import figures, page
from pipeline_lib.report.page import Cell, Drawing, Fold, Page, Row, Section, Table, Text
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Verdict, item_differences, judge
from pipeline_lib.results.statistics import Interval

HTML, MARKDOWN = "comparison.html", "comparison.md"
MINUS_BASE, MEAN_CENTRED = "minus base", "mean-centred"


@dataclass(frozen=True)
class Entry:
    """One headline of one group: its value by seed, the seeds' mean difference from base with an interval."""

    measure: Measure
    values: tuple[float, ...]  # by seed, shares
    difference: Interval
    p_value: float
    verdict: Verdict = "still"

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None of a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def drawn(self, label: str) -> figures.Difference:
        """Return the difference with its interval, and that of each seed, in percentage points."""
        base = self.mean - self.difference.value
        value, low, high = self.difference
        seeds = tuple(100 * (seed - base) for seed in self.values)
        return figures.Difference(label, (100 * value, 100 * low, 100 * high), self.verdict, seeds)


@dataclass(frozen=True)
class Board:
    """The groups, best first, with everything they are compared by."""

    groups: Sequence[Group]
    settings: Certainty

    @cached_property
    def ranking_sets(self) -> list[str]:
        """Return the selection parts that all groups share and that have headlines; else the evaluation sets."""
        shared = [name for name in self._names("selection") if self.keys(name)]
        return shared or self._names("sets")

    @property
    def is_honest(self) -> bool:
        """Return whether the ranking uses other images than the evaluation sets."""
        return not set(self.ranking_sets) & set(self._names("sets"))

    @cached_property
    def sets(self) -> list[str]:
        """Return all sets that all groups share, the ranking ones first."""
        return [*self.ranking_sets, *(name for name in self._names("sets") if name not in self.ranking_sets)]

    def _names(self, kind: str) -> list[str]:
        """Return the sets of a kind that every candidate was evaluated on, with the same images."""
        candidates = [candidate for group in self.groups for candidate in group.candidates]
        digests = [{name: one.get("digest") for name, one in getattr(c.refined, kind).items()} for c in candidates]
        return [name for name, digest in digests[0].items() if all(d.get(name) == digest for d in digests)]

    def keys(self, name: str) -> dict[str, str]:
        """Return the headlines of a set that all groups have: key -> label."""
        found = [
            {measure.key: measure.label for measure in Variant(candidate.refined).headlines(name)}
            for group in self.groups
            for candidate in group.candidates
        ]
        return {key: label for key, label in found[0].items() if all(key in one for one in found)}

    @cached_property
    def bases(self) -> dict[str, Evaluation]:
        """Return the distinct base models by the end of their row's label, which is empty for a single one."""
        found = {c.base.results["weights_digest"]: c.base for group in self.groups for c in group.candidates}
        return {f" {digest[:8]}" if len(found) > 1 else "": base for digest, base in found.items()}

    @cached_property
    def entries(self) -> dict[str, dict[str, dict[str, Entry]]]:
        """Return set -> label of the row -> key of the headline -> entry: groups, and bases mean-centred where known.

        Holm's correction is over all of them, within each set.
        """
        return {name: self._judge(self._rows(name)) for name in self.sets}

    def _rows(self, name: str) -> dict[str, dict[str, Entry]]:
        rows = {group.label: self._entries(group, name) for group in self.groups}
        for suffix, base in self.bases.items():
            plain, centred = Variant(base), Variant(base, CENTRED)
            if list(centred.headlines(name)):
                keys = list(self.keys(name))
                rows[MEAN_CENTRED + suffix] = _compare([(plain, centred)], name, keys, self.settings)
        return rows

    def _entries(self, group: Group, name: str) -> dict[str, Entry]:
        pairs = [(Variant(candidate.base), Variant(candidate.refined)) for candidate in group.candidates]
        return _compare(pairs, name, list(self.keys(name)), self.settings)

    def _judge(self, rows: dict[str, dict[str, Entry]]) -> dict[str, dict[str, Entry]]:
        flat = [(label, key, entry) for label, by_key in rows.items() for key, entry in by_key.items()]
        adjusted, alpha = statistics.holm([entry.p_value for _, _, entry in flat]), 1 - self.settings.confidence
        judged: dict[str, dict[str, Entry]] = {label: {} for label in rows}
        for (label, key, entry), p in zip(flat, adjusted, strict=True):
            judged[label][key] = replace(entry, verdict=judge(entry.difference, p, alpha))
        return judged

    def score(self, group: Group) -> float:
        """Return the mean difference from base over the headlines of the ranking sets."""
        scores = self.scores(group)
        return float(np.mean(scores)) if scores else 0.0

    def scores(self, group: Group) -> list[float]:
        """Return the same by seed."""
        entries = [e for name in self.ranking_sets for e in self.entries[name][group.label].values()]
        changes = [np.array(entry.values) - (entry.mean - entry.difference.value) for entry in entries]
        return [float(score) for score in np.mean(changes, axis=0)] if changes else []

    def moved(self, group: Group, names: Sequence[str]) -> str:
        """Say how many headlines of the sets `names` rose or fell measurably, in words."""
        verdicts = [entry.verdict for name in names for entry in self.entries[name][group.label].values()]
        said = [f"{verdicts.count(kind)} {kind}" for kind in ("rose", "fell") if kind in verdicts]
        return f"of {len(verdicts)} headlines {' and '.join(said) or 'none moved'} measurably"

    @cached_property
    def ranked(self) -> list[Group]:
        """Return the groups, best first."""
        return sorted(self.groups, key=lambda group: (-self.score(group), group.label))


def _compare(
    pairs: Sequence[tuple[Variant, Variant]], name: str, keys: Sequence[str], settings: Certainty
) -> dict[str, Entry]:
    """Compare (before, after) pairs by the headlines of a set, their item-wise differences averaged over the pairs."""
    measures = {m.key: m for m in pairs[0][1].headlines(name) if m.key in keys}
    differences = {}
    for key, measure in measures.items():
        means = [item_differences(before, after, measure) for before, after in pairs]
        differences[key] = means[0]._replace(values=np.mean([mean.values for mean in means], axis=0))
    tests = statistics.paired_tests(
        differences,
        pairs[0][1].evaluation.all_sets[name]["num_images"],
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    by_seed = [{m.key: m.value for m in after.headlines(name)} for _, after in pairs]
    return {
        key: Entry(
            measure,
            tuple(values[key] for values in by_seed),
            Interval(tests[key].difference, tests[key].low, tests[key].high),
            tests[key].p_value,
        )
        for key, measure in measures.items()
    }


def make_board(groups: Sequence[Group], params_file: Path) -> Board:
    """Make a board that is as sure as section `evaluate` of `params_file` asks for.

    Raises:
        UserError: The groups share no set.
    """
    labels = [group.label for group in groups]
    assert len(set(labels)) == len(labels), f"groups share a label, by which entries are found: {labels}"
    board = Board(groups, config.load_some(params_file, Certainty))
    if not board.sets:
        raise UserError("nothing to compare: the evaluations have no set in common with the same images")
    return board


# --- tables and page -------------------------------------------------------------------------------------------------


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
