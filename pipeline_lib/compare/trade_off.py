"""Gain against loss: what each configuration changes in zero-shot skill and in retrieval, drawn and in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_lib.compare.board import Board
from pipeline_lib.compare.candidates import Group
from pipeline_lib.core import artifacts
from pipeline_lib.report import page
from pipeline_lib.report.page import Cell, Drawing, Fold, Row, Table
from pipeline_lib.report.trade_off import Place, Point, trade_off
from pipeline_lib.results import statistics, wise_ft
from pipeline_lib.results.folders import CENTRED, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import item_differences
from pipeline_lib.results.rivals import MEAN_CENTRED
from pipeline_lib.results.seeds import average, over_seeds
from pipeline_lib.results.statistics import Interval

AXES = dict(zip(("zero-shot", "retrieval"), wise_ft.AXES, strict=True))  # name -> kinds of headlines
RATE = "refine.learning_rate"
Pairs = Sequence[tuple[Variant, Variant]]  # before and after, by seed


def axis(measure: Measure) -> str | None:
    """Return the axis that a headline counts on; None: none."""
    return next((name for name, kinds in AXES.items() if measure.kind in kinds), None)


def show_trade_off(board: Board) -> tuple[Any, ...]:
    """Return the figure and its numbers: the evaluation sets together, then the part to choose on.

    Empty where nothing measures both, since one kind of headlines makes no plane.
    """
    judging = [name for name in board.sets if name not in board.ranking_sets] or board.ranking_sets
    panels = {", ".join(judging): judging}
    if judging != board.ranking_sets:
        panels[f"{', '.join(board.ranking_sets)} (to choose on)"] = board.ranking_sets
    measured = {title: names for title, names in panels.items() if {*AXES} <= _axes_of(board, names)}
    if not measured:
        return ()
    joined = _by_rate(board.ranked)
    short, rate = _short_names(board.ranked, joined)
    places = {title: _places(board, names, short) for title, names in measured.items()}
    level = page.level(board.settings.confidence)
    figure = trade_off(places, joined, confidence=level, note=_note(board, measured) + rate)
    return Drawing(figure), Fold("Gain against loss as numbers", tuple(_numbers(*one, level) for one in places.items()))


def _headlines(board: Board, name: str) -> list[Measure]:
    """Return the headlines of a set that all groups have, as the first one measured them."""
    keys, first = board.keys(name), board.groups[0].candidates[0]
    return [measure for measure in Variant(first.refined).headlines(name) if measure.key in keys]


def _axes_of(board: Board, names: Sequence[str]) -> set[str | None]:
    return {axis(measure) for name in names for measure in _headlines(board, name)}


def _note(board: Board, panels: Mapping[str, Sequence[str]]) -> str:
    """Say which headlines each axis is the mean of, once where that is the same in all panels."""
    said = {}
    for title, names in panels.items():
        found = [measure for name in names for measure in _headlines(board, name)]
        by_axis = {
            one: ", ".join(m.label if len(names) == 1 else m.name for m in found if axis(m) == one)
            for one in (*AXES, None)
        }
        neither = by_axis.pop(None)
        said[title] = "; ".join(f"{one} is the mean of {headlines}" for one, headlines in by_axis.items())
        said[title] += f"; left out: {neither}" if neither else ""
    same = len({*said.values()}) == 1
    texts = {*said.values()} if same else [f"{title}: {text}" for title, text in said.items()]
    return f"Changes against base: {'. '.join(texts)}."


def _places(board: Board, names: Sequence[str], short: Mapping[str, str]) -> list[Place]:
    places = []
    for suffix, base in board.bases.items():
        pairs = [(Variant(base), Variant(base, CENTRED))]
        if all(list(pairs[0][1].headlines(name)) for name in names):
            label = MEAN_CENTRED + suffix
            places.append(Place(label, label, MEAN_CENTRED, **_coordinates(board, pairs, names)))
    for group in board.ranked:
        pairs = [(Variant(candidate.base), Variant(candidate.refined)) for candidate in group.candidates]
        found = _coordinates(board, pairs, names)
        name, kind = short[group.label], group.candidates[0].recipe
        places.append(Place(group.label, name, kind, **found, mixes=_mixes(group, names)))
    return places


def _coordinates(board: Board, pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """Return where a configuration lies, as `Place` has it."""
    by_axis: dict[str | None, list[_Change]] = {one: [] for one in AXES}
    for number, name in enumerate(names):
        measures = [measure for measure in _headlines(board, name) if axis(measure) is not None]
        changes = _changes(pairs, name, measures, board.settings.bootstrap_samples, board.settings.seed + number)
        for measure, change in zip(measures, changes, strict=True):
            by_axis[axis(measure)].append(change)
    confidence = board.settings.confidence
    tail = 50 * (1 - confidence)
    intervals, seeds = [], []
    for found in by_axis.values():
        by_seed = 100 * np.mean([change[0] for change in found], axis=0)
        low, high = 100 * np.nanpercentile(np.mean([change[1] for change in found], axis=0), [tail, 100 - tail])
        interval = Interval(float(by_seed.mean()), float(low), float(high))
        intervals.append(over_seeds(interval, by_seed, confidence)[0])
        seeds.append(by_seed.tolist())
    points = tuple(zip(*seeds, strict=True))
    return {"zero_shot": intervals[0], "retrieval": intervals[1], "seeds": points, "gap": _gap(pairs, names)}


_Change = tuple[np.ndarray, np.ndarray]  # of one headline: by seed [S], and of their mean on resamples [R]; shares


def _changes(pairs: Pairs, name: str, measures: Sequence[Measure], num_samples: int, seed: int) -> list[_Change]:
    """Return the change of each headline of a set; all are resampled together, since they share their images."""
    found = {m.key: [item_differences(before, after, m) for before, after in pairs] for m in measures}
    means = {key: average(each) for key, each in found.items()}
    num_images = pairs[0][0].evaluation.all_sets[name]["num_images"]
    drawn = statistics.bootstrap(means, num_images, num_samples=num_samples, seed=seed)
    return [(np.array([one.value for one in found[m.key]]), drawn[m.key]) for m in measures]


def _mixes(group: Group, names: Sequence[str]) -> tuple[Point, ...]:
    """Return the mean over seeds of the curve between base and refined; empty unless all seeds have the same one."""
    curves = [wise_ft.wise_curve(candidate.base, candidate.refined, names) for candidate in group.candidates]
    if not curves[0] or any([mix for mix, *_ in curve] != [mix for mix, *_ in curves[0]] for curve in curves):
        return ()
    means = np.array(curves, dtype=float).mean(axis=0)  # what one axis does not measure is NaN
    return tuple((float(x), float(y)) for _, x, y in means)


def _gap(pairs: Pairs, names: Sequence[str]) -> float | None:
    """Return the mean over seeds of the centroid distance on the first set that has one."""
    for name in names:
        found = [after.block(name, "gap").get("centroid_distance") for _, after in pairs]
        if None not in found:
            return float(np.mean(found))
    return None


def _by_rate(groups: Sequence[Group]) -> list[list[str]]:
    """Return the labels of groups that differ in the learning rate alone, each list in its order."""
    found: dict[str, list[tuple[float, str]]] = {}
    for group in groups:
        rest = dict(group.candidates[0].configuration)
        rate = rest.pop(RATE, 0.0)
        found.setdefault(artifacts.digest(rest), []).append((rate, group.label))
    return [[label for _, label in sorted(members)] for members in found.values() if len(members) > 1]


def _short_names(groups: Sequence[Group], joined: Sequence[Sequence[str]]) -> tuple[dict[str, str], str]:
    """Return label -> name in the figure, and a sentence on the learning rate that names leave out.

    On a line of learning rates the last configuration has its name, the others their rate alone.
    """
    rates = {group.label: group.candidates[0].configuration.get(RATE) for group in groups}
    lines = {label for line in joined for label in line}
    others = {rate for label, rate in rates.items() if label not in lines}
    short = {}
    for label, rate in rates.items():
        without = label.replace(f", learning_rate {rate}", "")
        short[label] = without if len(others) == 1 else f"{without}, lr {rate}" if without != label else label
        if label in lines:
            last = any(label == line[-1] for line in joined)
            short[label] = f"{without}, lr {rate}" if last else f"lr {rate}"
    said = f" The learning rate is {next(iter(others))} where none is named." if len(others) == 1 and lines else ""
    return short, said


def _numbers(title: str, places: Sequence[Place], level: str) -> Table:
    rows = [
        Row((Cell(place.label), _cell(place.zero_shot), _cell(place.retrieval), Cell(page.number(place.gap))))
        for place in places
    ]
    return Table(
        (title, "zero-shot, points", "retrieval, points", "gap"),
        tuple(rows),
        note=f"Change against base, with {level} intervals over images and, of several seeds, over seeds.",
    )


def _cell(interval: tuple[float, float, float]) -> Cell:
    value, low, high = (page.points(one / 100) for one in interval)
    return Cell(value, (low, high))
