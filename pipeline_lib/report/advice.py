"""What to do next, in one line, from what was measured."""

from __future__ import annotations

import math

from pipeline_lib.report import alarms, page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.results.wise_ft import best_mix, wise_curve

WANTED = 0.02  # the change that a set should show: ± 2 points
LITTLE = 1e-3  # of the weights' norm: less is hardly training
GROWS = 3  # factor between two learning rates that are worth comparing


def next_step(inputs: ReportInputs) -> str:
    """Say what to do next; the first rule that holds speaks."""
    tested = [row for row in inputs.comparison if row.adjusted_p is not None]
    verdicts = {row.verdict for row in tested}
    rate = inputs.parameters["refine"]["learning_rate"]
    mix = _best_mix(inputs)
    known = [row for row in tested if row.before.kind != "choice"]  # a good base may be at chance on hard choices
    if known and all(0 < row.before.floor >= row.before.interval.low for row in known):
        return (
            "check that captions and labels belong to their images; until the base is above chance nothing can be told."
        )
    if alarms.is_same_model(inputs):
        return f"train: the rate {rate:g} over {len(inputs.history)} steps changed no weight."
    if alarms.breakdowns(inputs):
        return f"do not use this model; run again with `refine.learning_rate: {rate / 10:g}`, a tenth."
    if "fell" in verdicts and mix:
        command = f"`python -m pipeline_lib.export hub --to mixed --mix {mix:g}`"
        return f"take mix {mix:g}, the best on {_selection(inputs)}: {command}."
    if "fell" in verdicts:
        rest = "weigh what fell against what rose" if "rose" in verdicts else "stop: the base is the better model"
        return f"lower the rate (`refine.learning_rate: {rate / GROWS:g}`), or {rest}."
    if "rose" in verdicts:
        return "keep it, and refine with more seeds before you trust the recipe: `make ablate SEEDS=0..2`."
    if any(row.verdict == "fell" for row in inputs.against_centring):
        return "prefer mean-centring: it costs nothing and is measurably ahead of the refined model."
    moved = inputs.manifests["refine"].get("weight_displacement")
    if moved is not None and moved < LITTLE:
        return f"raise the rate (`refine.learning_rate: {GROWS * rate:g}`): the weights hardly moved."
    return _more_images(inputs)


def _best_mix(inputs: ReportInputs) -> float:
    """Return the mix between base and refined that is best where choices are made; 0: none is better than an end."""
    curve = wise_curve(inputs.base, inputs.refined, list(inputs.refined.selection))
    best = best_mix(curve) if curve else 0.0
    return best if best < 1 else 0.0


def _selection(inputs: ReportInputs) -> str:
    return ", ".join(inputs.refined.selection)


def _more_images(inputs: ReportInputs) -> str:
    """Say how many images would show a change of `WANTED`; the error falls with the root of their number."""
    blind = [one.measure.name for one in inputs.resolutions if one.shows_none]
    if blind:
        return f"test on more images: on {blind[0]} not even a model that is always right would be told from the base."
    worst = max(inputs.resolutions, key=lambda one: one.smallest)
    have = inputs.refined.sets[worst.measure.set_name]["num_images"]
    if worst.smallest <= WANTED:
        return "stop, or try another recipe: a change of two points would have been seen, and there is none."
    needed = have * (worst.smallest / WANTED) ** 2
    rounded = math.ceil(needed / 10 ** (len(str(int(needed))) - 2)) * 10 ** (len(str(int(needed))) - 2)
    return (
        f"test on more images: about {rounded:,} instead of {have:,} would show a change of "
        f"{page.percent(WANTED)} points on {worst.measure.name}."
    )
