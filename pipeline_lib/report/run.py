"""The page as a whole: its sections in their order, the files it is written to, the verdict in one sentence."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.report import page, pictures, tables, verdict
from pipeline_lib.report.inputs import Inputs
from pipeline_lib.report.page import Page, Section

STAGE = "report"
HTML, MARKDOWN = "report.html", "report.md"


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


def run(inputs: Inputs, target: Path) -> Page:
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
