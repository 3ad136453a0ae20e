"""What a figure is, and how it becomes SVG for the page and PNG for files: with matplotlib, without files or pyplot.

A `Figure` holds panels; each becomes an SVG of its own in the page (two beside each other on a desk, one below the
other on a phone), and all of them together one PNG for DVC plots and MLflow. Colours are named once, here: the page
replaces each by a CSS variable (`to_svgs`), so that one drawing serves light, dark and print. Hues are Okabe and Ito's,
told apart under the common colour-vision deficiencies, and never the only carrier of a meaning.
The bytes depend on the arrays alone: no date, no version, no random ids, no user's matplotlibrc.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes"], None]

COLOURS = {  # name of the CSS variable: its light value, unique, as matplotlib writes it
    "ink": "#1c2126",
    "muted": "#5c6670",
    "rule": "#d5dade",
    "paper": "#fefefe",
    "image": "#0072b2",
    "text": "#d55e00",
    "base": "#7d8790",
    "centred": "#b0689a",
    "refined": "#00805e",
    "rose": "#00815f",
    "fell": "#c4431c",
    "still": "#7d8791",
}
PANEL_INCHES = (4.4, 3.2)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's own font, selectable, small
    "svg.hashsalt": "figures",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the PNGs look the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Figure:
    """What is drawn: what it is called, how it is read, and how each of its panels is drawn."""

    name: str  # file name stem, and prefix of the SVG's ids
    title: str
    caption: str  # plain sentences: what is drawn and how to read it; the alternative text too
    panels: tuple[Panel, ...]
    panel_inches: tuple[float, float] = PANEL_INCHES


@lru_cache(maxsize=64)  # of the figures of a page, which may be rendered twice
def to_svgs(figure: Figure) -> tuple[str, ...]:
    """Render one `<svg>` element per panel: sized by the page, coloured by its CSS variables, with ids of its own."""
    width, height = figure.panel_inches
    return tuple(
        _for_page(_save((panel,), width, height, "svg").decode(), f"{figure.name}-{i}")
        for i, panel in enumerate(figure.panels)
    )


def to_png(figure: Figure, *, columns: int | None = None) -> bytes:
    """Render all panels as one PNG on white, 160 dots per inch; three beside each other, or four as two by two."""
    width, height = figure.panel_inches
    columns = columns or (2 if len(figure.panels) == 4 else 3)
    return _save(figure.panels, width, height, "png", columns=columns)


def _save(panels: Sequence[Panel], width: float, height: float, kind: str, *, columns: int = 3) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        canvas = Canvas(figsize=(width * columns, height * rows), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False).ravel()
        for panel, axes in zip(panels, grid, strict=False):
            panel(axes)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if kind == "svg":
            canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        else:
            canvas.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _for_page(svg: str, prefix: str) -> str:
    """Return the SVG file of matplotlib as an element of a page: no prolog, no fixed size, CSS colours, its own ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for name, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg)
