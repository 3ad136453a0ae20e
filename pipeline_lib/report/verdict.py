"""The conclusion, computed: what rose, what fell, and whether refinement beats what is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_lib.report import figures, page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Drawing, Points, Text
from pipeline_lib.report.tables import signed
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.gap import Gap
from pipeline_lib.results.paired import Paired
from pipeline_lib.results.statistics import Interval


def sentence(comparison: Sequence[Paired]) -> str:
    """Say which headlines rose, fell, did not move, in one sentence that begins with the conclusion."""
    verdicts = [row.verdict for row in comparison if row.adjusted_p is not None]
    rose, fell, still = (verdicts.count(kind) for kind in ("rose", "fell", "still"))
    if not verdicts:
        return "Nothing to compare: no headline was measured on both models."
    word = "Mixed" if rose and fell else "Better" if rose else "Worse" if fell else "No measurable change"
    if still == len(verdicts):
        return f"{word} in {'the one headline' if still == 1 else f'any of the {still} headlines'}."
    if len({*verdicts}) == 1:
        subject = "the one headline" if len(verdicts) == 1 else f"all {len(verdicts)} headlines"
        return f"{word}: {subject} {verdicts[0]}."
    kinds = ((rose, "rose"), (fell, "fell"), (still, "did not move measurably"))
    said = [f"{count} {verb}" for count, verb in kinds if count]
    return f"{word}: of {len(verdicts)} headlines, {', '.join(said[:-1])} and {said[-1]}."


def section(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return the blocks of the verdict."""
    headlines = [row for row in inputs.comparison if row.adjusted_p is not None]
    order = {"rose": 0, "fell": 1, "still": 2}
    ordered = sorted(headlines, key=lambda row: order[row.verdict])
    points = Points(tuple((_point(row, inputs.certainty), row.verdict) for row in ordered))
    rows = [figures.Difference(row.before.name, _in_points(row.difference), row.verdict) for row in headlines]
    drawing = (Drawing(figures.differences(rows, confidence=page.level(inputs.certainty.confidence))),) if rows else ()
    return (
        Text(sentence(inputs.comparison), lead=True),
        points,
        *(Text(text) for text in (_gap_text(inputs), probe_verdict(inputs.probes), _training_note(inputs)) if text),
        *drawing,
        Text(
            "How sure: both models saw the same items. Retrieval is tested by exact sign flips of each image's "
            "difference, captions kept with theirs; accuracy by McNemar's exact test; p-values carry Holm's correction "
            f"over all headlines. {_resolution(headlines, inputs.certainty)}This covers the choice of images, "
            "not the luck of one training run: for that, refine with several seeds and compare them."
        ),
    )


def _point(row: Paired, settings: Certainty) -> str:
    verb = "did not move measurably" if row.verdict == "still" else row.verdict
    return (
        f"{row.before.name} **{verb}**: {page.percent(row.before.interval.value)} → "
        f"{page.percent(row.after.interval.value)}\u00a0%, {page.points(row.difference.value)} points "
        f"({page.level(settings.confidence)}: {page.points(row.difference.low)} to "
        f"{page.points(row.difference.high)}), "
        f"{page.p_clause(1.0 if row.adjusted_p is None else row.adjusted_p)}"
    )


def _resolution(headlines: Sequence[Paired], settings: Certainty) -> str:
    """Say how large a change would have been seen, where something did not move."""
    widths = [(row.difference.high - row.difference.low) / 2 for row in headlines if row.verdict == "still"]
    if not widths:
        return ""
    seen = statistics.detectable(max(widths), settings.confidence, len(headlines))
    return (
        f"With this many images and headlines, a true change of {page.percent(seen)} points would be found in four "
        "cases of five (80\u00a0% power); smaller ones are likely to go unseen. "
    )


def _in_points(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def _gap_text(inputs: ReportInputs) -> str:
    """Say what became of the gap on the first set that has one; empty without captions."""
    gaps = list(inputs.gaps.values())
    return gap_verdict(gaps[0], inputs.against_centring, inputs.certainty) if gaps else ""


def gap_verdict(gap: Gap, against_centring: Sequence[Paired], settings: Certainty) -> str:
    """Say what became of the gap, and whether refinement beats the free baseline: on the gap, or else on accuracy."""
    change = gap.change
    moved = "narrowed" if change.high < 0 else "widened" if change.low > 0 else "did not change measurably"
    text = (
        f"The gap on {gap.set_name} **{moved}**: centroid distance {page.number(gap.base)} → "
        f"{page.number(gap.refined)}; less the noise of so few images the change is {signed(change.value)} "
        f"({page.level(settings.confidence)}: {signed(change.low)} to {signed(change.high)}). Two samples of "
        f"one distribution would lie {page.number(gap.floor)} apart."
    )
    if gap.free is None or gap.against_free is None:
        return text
    text += f" Mean-centring, which costs nothing, brings it to {page.number(gap.free)}, so refinement "
    if moved == "narrowed" and gap.refined < min(gap.base, gap.free) and gap.against_free.high < 0:
        text += "**beats it on the gap**; on accuracy, "
    else:
        text += "**does not beat it on the gap** and must win on accuracy: "
    return text + accuracy_verdict(against_centring)


def accuracy_verdict(comparison: Sequence[Paired]) -> str:
    """Hold refined against mean-centred on the headlines, as the end of a sentence."""
    tested = [row for row in comparison if row.adjusted_p is not None]
    won, lost = ([row.before.name for row in tested if row.verdict == kind] for kind in ("rose", "fell"))

    def named(names: Sequence[str]) -> str:
        return ", ".join(names) if len(names) <= 3 else f"{len(names)} of {len(tested)} headlines"

    if won and not lost:
        return f"**it wins**, measurably ahead on {named(won)} and behind on none."
    if lost and not won:
        return f"**it loses**, measurably behind on {named(lost)} and ahead on none."
    if won:
        return f"**it wins some and loses some**, ahead on {named(won)}, behind on {named(lost)}."
    return f"**no measurable difference** on any of the {len(tested)} headlines."


def probe_verdict(probes: Sequence[Paired]) -> str:
    """Say what a linear probe still finds in the image features. Empty without one."""
    if not probes:
        return ""
    moved = [
        f"**{row.verdict}** on {row.before.set_name}: {row.before.task} ({page.points(row.difference.value)} points)"
        for row in probes
        if row.verdict != "still"
    ]
    still = len(probes) - len(moved)
    if not moved:
        tasks = "the one task" if still == 1 else f"any of {still} tasks"
        moved = [f"**did not move measurably** on {tasks}"]
    elif still:
        moved.append(f"did not move measurably on {still} more")
    return f"What the image features know, read by a linear probe: it {', '.join(moved)}."


def _training_note(inputs: ReportInputs) -> str:
    moved = inputs.manifests["refine"].get("weight_displacement")
    if moved is None:
        return ""
    return f"Training moved the weights by {100 * moved:.2g}\u00a0% of their norm in {len(inputs.history)} steps."
