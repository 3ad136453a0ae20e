"""The page as a whole: its sections in their order, the files it is written to, and the same in a few numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, runtime
from pipeline_lib.report import (
    advice,
    alarms,
    choices,
    drawings,
    examples,
    few_shot,
    header,
    near_duplicates,
    tables,
    verdict,
    wise_ft,
)
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Fact, Page, Section, plain_text, to_html, to_markdown, to_terminal, write_page

STAGE = "report"
HTML, MARKDOWN = "report.html", "report.md"
P_VALUE = "_adjusted_p"  # ending of a name in `summary`


def compose_page(inputs: ReportInputs) -> Page:
    """Compose the page: verdict, tables, figures, examples, provenance."""
    sections = [Section(title, compose(inputs)) for title, compose in runtime.until_stopped(_SECTIONS)]
    shown = tuple(section for section in sections if section.blocks)
    return Page(inputs.title or inputs.sets[0], "", shown, header.run_facts(inputs))


def _before_and_after(inputs: ReportInputs) -> tuple[Any, ...]:
    return (
        tables.before_after_table(inputs),
        *tables.rivals_table(inputs),
        *tables.shift_tables(inputs),
        *choices.show_groups(inputs),
        *tables.detail_tables(inputs),
    )


def _forgotten(inputs: ReportInputs) -> tuple[Any, ...]:
    return *tables.probe_tables(inputs), *few_shot.show_curves(inputs), *wise_ft.show_curve(inputs)


_SECTIONS: tuple[tuple[str, Callable[[ReportInputs], tuple[Any, ...]]], ...] = (
    ("Verdict", verdict.section),
    ("Before and after", _before_and_after),
    ("The modality gap", tables.gap_tables),
    ("Figures", drawings.draw_figures),
    ("Examples", examples.show_examples),
    ("What was forgotten", _forgotten),
    ("What was measured on", tables.data_table),
    ("Provenance", tables.provenance_tables),
)


def run(inputs: ReportInputs, target: Path) -> Page:
    """Compose the page and write it to the folder `target`: report.html, report.md, the images that the latter shows.

    Beside them `near_duplicates.FILE`, where there is something to list.

    Raises:
        UserError: Too many evaluated images nearly repeat one that was trained on.
        Stopped: A signal asked for it; nothing is left.
    """
    found = inputs.near_duplicates
    near_duplicates.check(found, inputs.parts, inputs.max_near_duplicate_share)
    page = compose_page(inputs)
    runtime.stop_if_asked()
    write_page(page, target, stage=STAGE, html=HTML, markdown=MARKDOWN, more=near_duplicates.file(found))
    return page


def write_copies(page: Page, folder: Path, took: str) -> dict[str, Path]:
    """Write the page to `folder` with one fact more, on what and how long it was computed; return the files by name.

    The page itself tells neither, since equal inputs give equal bytes. No files where nothing is known.
    """
    if not took:
        return {}
    page = replace(page, facts=(*page.facts, Fact("computed on", took)))
    texts = {HTML: to_html(page), MARKDOWN: to_markdown(page)}
    for name, text in texts.items():
        artifacts.write_text(folder / name, text)
    return {name: folder / name for name in texts}


def sentence(inputs: ReportInputs) -> str:
    """Say the verdict in one sentence."""
    return verdict.sentence(inputs)


def summary(inputs: ReportInputs) -> dict[str, float | str]:
    """Return what a table of configurations shows of one: headlines with change and p-value, the gap, the verdict.

    Names are `<set>/<metric>`, `<set>/<metric>_difference`, `<set>/<metric>_adjusted_p` and `verdict`; numbers have
    four digits.
    """
    values: dict[str, float] = {}
    for row in inputs.comparison:
        if row.adjusted_p is not None:
            name = f"{row.after.set_name}/{row.after.key}"
            values |= {name: row.after.value, f"{name}_difference": row.difference.value}
            values[f"{name}{P_VALUE}"] = row.adjusted_p
    for name, gap in inputs.gaps.items():
        values[f"{name}/centroid_distance"] = gap.refined
        values[f"{name}/centroid_distance_difference"] = gap.refined - gap.base
    return {**{name: float(f"{value:.4g}") for name, value in values.items()}, "verdict": sentence(inputs)}


def measured(values: Mapping[str, float | str]) -> dict[str, float | str]:
    """Return the `summary` without p-values, which differ between any two runs and would be rows of every diff."""
    return {name: value for name, value in values.items() if not name.endswith(P_VALUE)}


def terminal_table(inputs: ReportInputs) -> str:
    """Render the verdict and the before/after table as plain text, at most 100 columns wide for usual names."""
    warnings = [*alarms.breakdowns(inputs), *alarms.doubts(inputs), *alarms.lost_classes(inputs)]
    said = [sentence(inputs), *warnings, verdict.resolution_line(inputs), f"Next: {advice.next_step(inputs)}"]
    lines = [textwrap.fill(plain_text(text), 100) for text in said if text]
    return "\n\n".join(["\n".join(lines), to_terminal(tables.before_after_table(inputs))])
