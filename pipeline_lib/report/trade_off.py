"""The figure of gain against loss: zero-shot skill across, retrieval up, a mark a configuration, base at the origin."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.report.canvas import COLOURS, Figure, Panel
from pipeline_lib.report.labels import Point, write_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = tuple[float, float, float]  # value, low, high

FAR = 3  # times the median reach: what lies farther gets a panel of its own
LABEL_CHARS = 26  # of a line
MARKERS, HUES = "os^DvPXph<>d", ("centred", "image", "text", "refined")


@dataclass(frozen=True)
class Place:
    """Where a configuration lies: changes against base in percentage points, each with its interval."""

    label: str  # no two places of a panel have the same
    name: str  # what is written beside its mark
    kind: str  # recipe, or what else it is; configurations of one kind have one marker and colour
    zero_shot: Interval
    retrieval: Interval
    seeds: tuple[Point, ...] = ()
    mixes: tuple[Point, ...] = ()  # of base and refined weights, from base to here
    gap: float | None = None

    @property
    def point(self) -> Point:
        """Return both values."""
        return self.zero_shot[0], self.retrieval[0]

    @property
    def reach(self) -> float:
        """Return the largest change, either way, that its intervals hold."""
        return max(abs(end) for interval in (self.zero_shot, self.retrieval) for end in interval)

    @property
    def text(self) -> str:
        """Return its name in lines, the gap in brackets."""
        gap = "" if self.gap is None else f" ({self.gap:.2f})"
        return textwrap.fill(self.name + gap, LABEL_CHARS)


def trade_off(
    panels: Mapping[str, Sequence[Place]], joined: Sequence[Sequence[str]], *, confidence: str, note: str
) -> Figure:
    """Draw what each configuration gains and loses against base.

    Where one lies far from all others, the panel is drawn twice: with all of them, and near the base alone.

    Args:
        panels: title -> places.
        joined: Labels of configurations that are joined by a line, in its order.
        confidence: Coverage of the intervals, as it reads.
        note: What the panels show, as sentences for the caption.
    """
    kinds = list(dict.fromkeys(place.kind for places in panels.values() for place in places))
    drawn: list[Panel] = []
    for title, places in panels.items():
        limit = FAR * float(np.median([place.reach for place in places]))
        near = [place for place in places if place.reach <= limit]
        if len(near) == len(places):
            drawn.append(_panel(title, places, places, joined, kinds))
        else:
            far = [place for place in places if place.reach > limit]
            drawn.append(_panel(f"{title}, near the base", near, near, joined, kinds))
            drawn.append(_panel(f"{title}, all", places, far, joined, kinds))
    has = {
        "gap": any(place.gap is not None for places in panels.values() for place in places),
        "mixes": any(place.mixes for places in panels.values() for place in places),
    }
    return Figure(
        "trade_off",
        "Gain against loss",
        f"{note} Up and to the right is better in both. Large marks: mean over seeds, with {confidence} intervals over "
        "images and, of several seeds, over seeds. Small dots: each seed."
        + (" In brackets: the gap (centroid distance)." if has["gap"] else "")
        + (" Thin lines: weights mixed between base and refined (WiSE-FT)." if has["mixes"] else "")
        + (" Broken lines join configurations that differ in the learning rate alone, in its order." if joined else ""),
        tuple(drawn),
        (4.4, 4.5),
    )


def _panel(
    title: str, places: Sequence[Place], named: Sequence[Place], joined: Sequence[Sequence[str]], kinds: Sequence[str]
) -> Panel:
    by_label = {place.label: place for place in places}

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["rule"], linewidth=0.9)
        axes.axhline(0, color=COLOURS["rule"], linewidth=0.9)
        for place in places:
            _draw_place(axes, place, *_style(kinds.index(place.kind)))
        for labels in joined:
            line = [by_label[label] for label in labels if label in by_label]
            if len(line) > 1:
                colour = _style(kinds.index(line[0].kind))[1]
                axes.plot(
                    *zip(*(place.point for place in line), strict=True), color=colour, linewidth=1.3, dashes=(4, 2)
                )
        axes.plot([0], [0], "*", color=COLOURS["ink"], markersize=11, markeredgecolor=COLOURS["paper"], zorder=2.5)
        axes.margins(0.12)
        axes.locator_params(nbins=7)
        axes.set_title(title)
        axes.set_xlabel("zero-shot against base, points")
        axes.set_ylabel("retrieval against base, points")
        names = [("base", (0.0, 0.0)), *((place.text, place.point) for place in named)]
        write_names(axes, names, [(0.0, 0.0), *(place.point for place in places)])

    return draw


def _style(number: int) -> tuple[str, str]:
    """Return marker and colour of the kind of this number; no two of the first forty share both."""
    return MARKERS[number % len(MARKERS)], COLOURS[HUES[(number + number // len(MARKERS)) % len(HUES)]]


def _draw_place(axes: Axes, place: Place, marker: str, colour: str) -> None:
    x, y = place.point
    if place.mixes:
        axes.plot(*zip(*place.mixes, strict=True), color=colour, linewidth=0.8, alpha=0.7)
    bars: dict[str, Any] = {"color": colour, "linewidth": 1.0, "alpha": 0.4}
    axes.plot(place.zero_shot[1:], [y, y], **bars)
    axes.plot([x, x], place.retrieval[1:], **bars)
    if len(place.seeds) > 1:
        axes.plot(*zip(*place.seeds, strict=True), ".", color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
    axes.plot([x], [y], marker, color=colour, markersize=8, markeredgecolor=COLOURS["paper"], zorder=3)
