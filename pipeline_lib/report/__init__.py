"""The report: what refinement changed and how sure that is. Both evaluations in, one page out (HTML, Markdown, PNG).

The verdict stands first and is computed, not written: headlines that rose, fell or did not move after Holm's
correction, then the question whether refinement was worth it, since mean-centring closes the gap for free. Everything
shown comes from files of earlier stages; the output holds no time, host or path, so that equal inputs give equal bytes.

    inputs      what is read, and the checks that it belongs together
    verdict     the conclusion in sentences
    tables      before and after, gap, data, provenance
    pictures    figures, examples, the curve between base and refined
"""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.report import page, pictures, tables, verdict
from pipeline_lib.report.inputs import Inputs, read
from pipeline_lib.report.page import Page, Section

STAGE = "report"
HTML, MARKDOWN = "report.html", "report.md"
__all__ = ["HTML", "MARKDOWN", "Inputs", "build", "read", "sentence", "terminal_table", "write"]


def build(inputs: Inputs) -> Page:
    """The page: verdict, tables, pictures, examples, provenance."""
    sections = [
        Section("Verdict", verdict.section(inputs)),
        Section("Before and after", (tables.before_after(inputs), *tables.detail(inputs))),
        Section("The modality gap", tables.gap(inputs)),
        Section("Pictures", pictures.drawings(inputs)),
        Section("Examples", pictures.examples(inputs)),
        Section("What was forgotten", (*tables.linear_probe(inputs), *pictures.wise_ft(inputs))),
        Section("What was measured on", tables.data(inputs)),
        Section("Provenance", tables.sources(inputs)),
    ]
    recipe, first = inputs.parameters["refine"]["recipe"], inputs.sets[0]
    subtitle = f"`{recipe}`, {len(inputs.history)} steps; evaluated on " + ", ".join(
        f"{name} ({inputs.refined.sets[name]['num_images']:,} pictures)" for name in inputs.sets
    )
    return Page(inputs.title or first, subtitle, tuple(section for section in sections if section.blocks))


def write(inputs: Inputs, target: Path) -> Page:
    """Build the page and write report.html, report.md and the pictures the latter shows to the folder `target`."""
    document = build(inputs)
    page.write(document, target, stage=STAGE, html=HTML, markdown=MARKDOWN)
    return document


def sentence(inputs: Inputs) -> str:
    """The verdict in one sentence."""
    return verdict.sentence(inputs.comparison)


def terminal_table(inputs: Inputs) -> str:
    """The verdict and the before/after table as plain text, at most 100 columns wide for usual names."""
    return f"{sentence(inputs)}\n\n{page.to_terminal(tables.before_after(inputs))}"
