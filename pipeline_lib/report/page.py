"""A page as data, rendered twice from the same blocks: one self-contained HTML file, and Markdown beside PNG files.

A `Page` is sections of blocks (paragraphs, tables, figures, examples, folded detail). Because both renderings walk the
same blocks, they cannot say different things. The HTML loads nothing: style, drawings and thumbnails are inside, and
every text is escaped by Jinja. Numbers are formatted here, once, for page, Markdown and terminal alike.
"""

from __future__ import annotations

import base64
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup, escape
from tabulate import tabulate

from pipeline_lib.core import artifacts
from pipeline_lib.report import canvas

Tone = Literal["", "rose", "fell", "still"]
SMALLEST_P = 0.001  # that is written with its digits


@dataclass(frozen=True)
class Cell:
    """One table cell: a value, its interval in smaller type, and whether it is good or bad news."""

    text: str
    interval: tuple[str, str] | None = None
    tone: Tone = ""

    def __str__(self) -> str:
        """Return one line of plain text."""
        return f"{self.text} [{', '.join(self.interval)}]" if self.interval else self.text


@dataclass(frozen=True)
class Row:
    """A row of cells; `kind` is `group` for a line that titles the rows below it, `strong` for one that leads."""

    cells: tuple[Cell, ...]
    kind: Literal["plain", "strong", "group"] = "plain"


@dataclass(frozen=True)
class Table:
    """Columns, the first left-aligned and the others right-aligned unless `text_columns` names them."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    text_columns: tuple[int, ...] = (0,)
    kind: str = field(default="table", init=False)

    @property
    def style(self) -> str:
        """Return CSS classes: `dense` with many columns, `intervals` where cells have them."""
        has_intervals = any(cell.interval for row in self.rows for cell in row.cells)
        return " ".join(["dense"] * (len(self.header) > 5) + ["intervals"] * has_intervals)

    def plain(self) -> list[list[str]]:
        """Return every row as strings, group lines padded to the full width."""
        width = len(self.header)
        return [[str(cell) for cell in row.cells] + [""] * (width - len(row.cells)) for row in self.rows]


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` in backticks, **strong** in asterisks. `lead`: not to be missed, `quiet`: the small print."""

    text: str
    lead: bool = False
    quiet: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Points:
    """A list of short sentences, each with its tone."""

    items: tuple[tuple[str, Tone], ...]
    kind: str = field(default="points", init=False)


@dataclass(frozen=True)
class Drawing:
    """A figure."""

    figure: canvas.Figure
    kind: str = field(default="drawing", init=False)


@dataclass(frozen=True)
class Example:
    """An image, what it is called, and what the model made of it before and after."""

    name: str  # file name stem
    jpeg: bytes
    caption: str
    tone: Tone
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Examples beside each other, with a heading."""

    title: str
    examples: tuple[Example, ...]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Fold:
    """Detail that starts closed on the screen and is open in print."""

    title: str
    blocks: tuple[Any, ...]
    kind: str = field(default="fold", init=False)


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Any, ...]


@dataclass(frozen=True)
class Fact:
    """A line below the title: what it tells, and that."""

    name: str
    text: str


@dataclass(frozen=True)
class Page:
    """A document: title, what stands below it, a list of contents, sections."""

    title: str
    subtitle: str  # may be empty
    sections: tuple[Section, ...]
    facts: tuple[Fact, ...] = ()
    contents: bool = True


def write_page(
    page: Page, target: Path, *, stage: str, html: str, markdown: str, more: Mapping[str, bytes] | None = None
) -> None:
    """Write `page` to the folder `target` as files `html` and `markdown`, its images and `more` beside them."""
    with artifacts.output_directory(target, stage) as place:
        artifacts.write_text(place(html), to_html(page))
        artifacts.write_text(place(markdown), to_markdown(page))
        for name, data in {**image_files(page), **(more or {})}.items():
            artifacts.write_bytes(place(name), data)


def to_html(page: Page) -> str:
    """Render `page` as one HTML file that opens from disk with no network."""
    return _environment(html=True).get_template("page.html.j2").render(page=page, colours=canvas.COLOURS)


def to_markdown(page: Page) -> str:
    """Render `page` as Markdown that expects the files of `image_files(page)` beside it."""
    return _environment(html=False).get_template("page.md.j2").render(page=page)


def image_files(page: Page) -> dict[str, bytes]:
    """Render the image files that `to_markdown` points to, by relative path."""
    files = {}
    for section in page.sections:
        for block in _walk(section.blocks):
            if isinstance(block, Drawing):
                files[f"figures/{block.figure.name}.png"] = canvas.to_png(block.figure)
            elif isinstance(block, Gallery):
                files |= {f"examples/{example.name}.jpg": example.jpeg for example in block.examples}
    return files


def to_terminal(table: Table) -> str:
    """Render `table` as aligned plain text; the names of more than five columns are broken into lines to save width."""
    align = ["left" if i in table.text_columns else "right" for i in range(len(table.header))]
    header = [textwrap.fill(name, 14) for name in table.header] if len(table.header) > 5 else table.header
    return tabulate(table.plain(), headers=header, tablefmt="simple", colalign=align, disable_numparse=True)


def plain_text(text: str) -> str:
    """Return a text without the marks of code and of emphasis."""
    return re.sub(r"`|\*\*", "", text)


def group(title: str) -> Row:
    """Return a row that titles those below it."""
    return Row((Cell(title),), "group")


def grid(columns: Sequence[str], rows: Mapping[str, Sequence[str]], **options: Any) -> Table:
    """Return a plain table of strings, one row per key."""
    return Table(
        tuple(columns), tuple(Row((Cell(k), *(Cell(v) for v in values))) for k, values in rows.items()), **options
    )


def percent(share: float) -> str:
    """Write a share in percent: 0.2064 -> 20.6 (the unit stands in the row's label)."""
    return _minus(f"{100 * share:.1f}")


def points(difference: float) -> str:
    """Write a difference of shares in points: 0.0312 -> +3.1, -0.004 -> −0.4, signed zero as 0.0, NaN as a dash."""
    if not math.isfinite(difference):
        return "–"
    text = f"{100 * difference:+.1f}"
    return _minus("0.0" if float(text) == 0 else text)


def number(value: float | None, digits: int = 3) -> str:
    """Write a plain number with `digits` decimals; fewer for large ones; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    return _minus(f"{value:.{digits if abs(value) < 100 else 1}f}")


def p_value(p: float) -> str:
    """Write a p-value for a cell of a table, where room is scarce: 0.012 or <.001; 0.0499 is not 0.050."""
    if p < SMALLEST_P:
        return "<.001"
    text = f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
    return f"{p:.4f}" if text == "0.050" else text


def p_clause(p: float) -> str:
    """Write a p-value for a sentence: p = 0.012 or p < 0.001; the first space does not break."""
    return f"p\u00a0< {SMALLEST_P}" if p < SMALLEST_P else f"p\u00a0= {p_value(p)}"


def level(confidence: float) -> str:
    """Write a confidence: 0.95 -> 95 %, with a space that does not break."""
    return f"{100 * confidence:g}\u00a0%"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _walk(blocks: Sequence[Any]) -> list[Any]:
    return [inner for block in blocks for inner in (_walk(block.blocks) if isinstance(block, Fold) else [block])]


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline_lib.report"),
        autoescape=html,  # noqa: S701 - Markdown is not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "inline": _inline_html,
        "data_uri": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
        "svgs": lambda figure: [Markup(svg) for svg in canvas.to_svgs(figure)],  # noqa: S704 - drawn by ourselves
        "pipe_table": _pipe_table,
        "escaped": lambda text: re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", text),
        "slug": heading_slug,
    }
    return environment


def heading_slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it for Markdown.

    >>> heading_slug("val, ranked on")
    'val-ranked-on'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _inline_html(text: str) -> Markup:
    """Return escaped text with `code` and **strong** as elements, `top-1` and `→ 0.3` never broken."""
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    safe = re.sub(r"\b(top-\d+)", r'<span class="whole">\1</span>', safe)
    safe = re.sub(r"→ (?=\d)", "→\u00a0", safe)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))  # noqa: S704 - escaped above


def _pipe_table(table: Table) -> str:
    """Return `table` for Markdown, pipes in cells escaped, leading rows in bold."""
    rows = []
    for row, cells in zip(table.rows, table.plain(), strict=True):
        cells = [cell.replace("|", "\\|") for cell in cells]
        rows.append(cells if row.kind == "plain" else [f"**{cells[0]}**", *cells[1:]])
    align = ["left" if i in table.text_columns else "right" for i in range(len(table.header))]
    return tabulate(rows, headers=table.header, tablefmt="pipe", colalign=align, disable_numparse=True)
