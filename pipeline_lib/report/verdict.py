"""The conclusion, computed: what rose, what fell, and whether refinement beats what is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_lib.report import advice, alarms, figures, near_duplicates, page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Drawing, Points, Text, Tone
from pipeline_lib.report.tables import signed
from pipeline_lib.results import power
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.conclusion import conclusion
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.gap import Gap
from pipeline_lib.results.paired import Paired
from pipeline_lib.results.statistics import Interval


def sentence(inputs: ReportInputs) -> str:
    """Say which headlines rose, fell, did not move, in one sentence that begins with the conclusion."""
    if alarms.is_same_model(inputs):
        return "No change: the refined model is the base, weight by weight."
    found = conclusion([row.verdict for row in inputs.comparison if row.adjusted_p is not None])
    return f"Broken, whatever rose: {found[0].lower()}{found[1:]}" if alarms.breakdowns(inputs) else found


def section(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return the blocks of the verdict."""
    headlines = [row for row in inputs.comparison if row.adjusted_p is not None]
    order = {"rose": 0, "fell": 1, "still": 2}
    ordered = sorted(headlines, key=lambda row: order[row.verdict])
    points: list[tuple[str, Tone]] = [(_point(row, inputs), row.verdict) for row in ordered]
    warned, lost = [*alarms.breakdowns(inputs), *alarms.doubts(inputs)], alarms.lost_classes(inputs)
    warnings: list[tuple[str, Tone]] = [(text, "fell") for text in warned]
    losses: list[tuple[str, Tone]] = [(text, "fell") for text in lost]
    near = near_duplicates.sentences(inputs.near_duplicates, inputs.near_duplicate_cosine)
    said = *near, *alarms.left_out(inputs), *alarms.truncated(inputs)
    notes: list[tuple[str, Tone]] = [(text, "still") for text in said]
    rows = [figures.Difference(row.before.name, _in_points(row.difference), row.verdict) for row in headlines]
    drawing = (Drawing(figures.differences(rows, confidence=page.level(inputs.certainty.confidence))),) if rows else ()
    return (
        Text(sentence(inputs), lead=True),
        Points((*warnings, *points, *losses, *notes)),
        Text(f"**Next:** {advice.next_step(inputs)}"),
        *(Text(text) for text in (_gap_text(inputs), probe_verdict(inputs.probes), _training_note(inputs)) if text),
        *drawing,
        Text(
            "How sure: both models saw the same items. Each headline is tested by exact sign flips of each image's "
            "difference, captions kept with theirs, copies of an image as one (of one item an image that is McNemar's "
            "exact test); p-values carry Holm's correction over all headlines. A headline rose only where it is also "
            "above what no model at all gives, and where accuracy by class (or R@1) does not contradict. This is one "
            "seed: it covers the choice of images, not the luck of a training run; for that, refine with several seeds "
            "and compare them."
        ),
        *_resolution(inputs),
    )


def _point(row: Paired, inputs: ReportInputs) -> str:
    verb = "did not move measurably" if row.verdict == "still" else row.verdict
    text = (
        f"{row.before.name} **{verb}**: {page.percent(row.before.interval.value)} → "
        f"{page.percent(row.after.interval.value)}\u00a0%, {page.points(row.difference.value)} points "
        f"({page.level(inputs.certainty.confidence)}: {page.points(row.difference.low)} to "
        f"{page.points(row.difference.high)}), "
        f"{page.p_clause(1.0 if row.adjusted_p is None else row.adjusted_p)}"
    )
    if row.objection:
        text += f"; not counted, since {row.objection}"
    return text + _beside(row, inputs)


def _beside(row: Paired, inputs: ReportInputs) -> str:
    """Return what else is worth saying of a headline: the typical place, or the class mean."""
    if row.before.kind == "log_rank":
        places = [_typical_place(Variant(one), row) for one in (inputs.base, inputs.refined)]
        return f". The typical place of the own one: {places[0]:.1f} → {places[1]:.1f}"
    wanted = (row.before.set_name, row.before.agrees_with)
    partner = next((one for one in inputs.comparison if (one.before.set_name, one.before.key) == wanted), None)
    if partner is None:
        return ""
    return (
        f". Class mean: {page.percent(partner.before.value)} → {page.percent(partner.after.value)}\u00a0%, "
        f"{page.points(partner.difference.value)} points ({page.points(partner.difference.low)} to "
        f"{page.points(partner.difference.high)})"
    )


def _typical_place(variant: Variant, row: Paired) -> float:
    key = f"{row.before.direction}_geometric_mean_rank"
    return next(measure.value for measure in variant.measures(row.before.set_name) if measure.key == key)


def _resolution(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return what this set could have shown: how often a true change of some points would have been found."""
    if not inputs.resolutions:
        return ()
    rows = {
        one.measure.name: [
            *(f"{100 * share:.0f}\u00a0%" for share in one.found),
            "–" if one.shows_none else page.percent(one.smallest),
        ]
        for one in inputs.resolutions
    }
    header = (
        "what this set could have shown",
        *(f"{100 * effect:g} point{'s' if effect > 0.01 else ''} found in" for effect in power.EFFECTS),
        "found in 80\u00a0%: points",
    )
    return (
        page.grid(
            header,
            rows,
            note="How often a true change of so many points would have been found, and the smallest that is found in "
            "four cases of five; simulated on these very items, among so many headlines. –: not even a model that is "
            "always right would be found so often.",
        ),
    )


def resolution_line(inputs: ReportInputs) -> str:
    """Say in a line the least that is found in four cases of five, from headline to headline."""
    said, smallest = [], [one.smallest for one in inputs.resolutions if not one.shows_none]
    if smallest:
        ends = dict.fromkeys(page.percent(end) for end in (min(smallest), max(smallest)))
        said.append(f"A true change of {' to '.join(ends)} points would have been found in four cases of five.")
    blind = [one.measure.name for one in inputs.resolutions if one.shows_none]
    if blind:
        said.append(f"On {', '.join(blind)} not even a model that is always right would have been found so often.")
    return " ".join(said)


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
