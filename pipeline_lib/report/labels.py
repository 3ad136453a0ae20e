"""Names beside the marks of a figure, none on a mark or on another name: a greedy choice, the same in every run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.report.canvas import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top
Array = np.ndarray[Any, Any]

SIZE = 9.5  # of the letters; all lengths here are points
MARK = 5.0  # half of what a mark takes
LINE = 2.0  # half of what a line takes
RADII, TURNS = (9, 16, 25, 36, 49, 64, 81, 100), 16  # at which names are tried
INSET = 6.0  # that names keep from the frame, since a panel shrinks a little when its neighbours are drawn


def write_names(
    axes: Axes, names: Sequence[tuple[str, Point]], marks: Sequence[Point], *, path: Sequence[Point] = ()
) -> None:
    """Write each name beside its mark where it covers least, with a line to it if that is far.

    Args:
        axes: With all that decides their limits drawn.
        names: Each with the place of its mark, in data units.
        marks: What no name should cover.
        path: Corners of a line that no name should cover.
    """
    from matplotlib.transforms import Affine2D

    canvas = axes.get_figure(root=True)
    assert canvas is not None
    canvas.draw_without_rendering()  # settles where the axes lie
    to_points = axes.transData + Affine2D().scale(72 / canvas.dpi)
    x, y = axes.get_xlim(), axes.get_ylim()
    low, high = to_points.transform((x[0], y[0])) + INSET, to_points.transform((x[1], y[1])) - INSET
    taken = [_around(to_points.transform(mark), MARK) for mark in marks]
    taken += _along([to_points.transform(corner) for corner in path])
    texts = [(tuple(to_points.transform(point)), _text_size(name)) for name, point in names]
    line = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.7, "shrinkA": 0, "shrinkB": MARK}
    for (name, point), offset in zip(names, place_texts(texts, (*low, *high), taken), strict=True):
        axes.annotate(
            name,
            point,
            offset,
            textcoords="offset points",
            fontsize=SIZE,
            ha=_alignment(offset[0]),
            va="center",
            bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.5, "alpha": 0.7},
            arrowprops=line if math.hypot(*offset) > 3 * MARK else None,
        ).set_in_layout(False)


def place_texts(texts: Sequence[tuple[Point, Point]], frame: Box, taken: Sequence[Box]) -> list[Point]:
    """Choose where texts stand, beside what they name: one after the other, each in the nearest place that is free.

    That depends on which comes first, so several orders are tried; least is covered, and then least far, in the best.

    Args:
        texts: Place of what is named, and width and height of the text, in points.
        frame: What they should stay within.
        taken: What they should not cover.

    Returns:
        The offset of each text.
    """
    choices = [_choices(*text) for text in texts]
    numbers = range(len(texts))
    sideways, upwards = (sorted(numbers, key=[at[side] for at, _ in texts].__getitem__) for side in (0, 1))
    tried = []
    for order in (sideways, sideways[::-1], upwards, upwards[::-1]):
        covered, chosen, total = np.array(taken).reshape(-1, 4), {}, 0.0
        for number in order:
            offsets, boxes = choices[number]
            outside = np.prod(texts[number][1]) - _overlap(boxes, np.array(frame))
            cost = 10 * (_overlap(boxes[:, None], covered).sum(axis=1) + outside) + np.repeat(RADII, TURNS)
            best = int(cost.round(6).argmin())
            chosen[number] = (float(offsets[best, 0]), float(offsets[best, 1]))
            covered = np.vstack([covered, boxes[best]])
            total += cost[best]
        tried.append((round(total, 6), [chosen[number] for number in numbers]))
    return min(tried, key=lambda one: one[0])[1]


def _choices(at: Point, size: Point) -> tuple[Array, Array]:
    """Return the places of a text around what it names, the nearest first: offsets [C, 2], and boxes taken [C, 4]."""
    angles = 2 * np.pi * np.arange(TURNS) / TURNS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = (np.array(RADII)[:, None, None] * directions).reshape(-1, 2).round(3)
    shares = [{"left": 0.0, "center": 0.5, "right": 1.0}[_alignment(across)] for across in offsets[:, 0]]
    corners = np.array(at) + offsets - np.array(size) * np.stack([shares, np.full(len(shares), 0.5)], axis=1)
    return offsets, np.concatenate([corners, corners + size], axis=1)


def _alignment(across: float) -> str:
    return "left" if across > 1 else "right" if across < -1 else "center"


def _text_size(text: str) -> Point:
    """Return width and height of lines of text in points, in the font of the PNG, which is wider than most."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font, lines = FontProperties(family="DejaVu Sans"), text.split("\n")
    return max(TextPath((0, 0), line, SIZE, prop=font).get_extents().width for line in lines), 11.5 * len(lines)


def _around(at: Any, half: float) -> Box:
    return at[0] - half, at[1] - half, at[0] + half, at[1] + half


def _along(corners: Sequence[Any]) -> list[Box]:
    """Return boxes that cover a line."""
    steps = [
        np.linspace(start, end, 2 + int(math.dist(start, end) / (2 * LINE)))
        for start, end in itertools.pairwise(corners)
    ]
    return [_around(at, LINE) for line in steps for at in line]


def _overlap(boxes: Array, others: Array) -> Array:
    """Return the areas that boxes [..., 4] share with others."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)
