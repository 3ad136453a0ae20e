"""What no headline shows: nothing was trained, one class is answered, features collapsed, the loss or rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline_lib.core.truncation import describe_truncation
from pipeline_lib.report import page
from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.results.folders import Variant

FEWER = 0.5  # of the base's classes or directions: below this share the loss is said
LOST = 2 / 3  # of the base's classes: below this share, where they are few already, it is said as well
FAVOURED = 0.5  # share of all answers that one class gets, and twice what it should
LOSS_ROSE, LOSS_SOARED = 1.1, 2.0  # times the loss on `val` before: said; broken
NO_LOSS = 0.01  # less before is none: a recipe that distils from the base alone begins at 0 and can only rise
CLASS_GROUPS = {  # of `class_groups`, and how each reads
    "rare_classes": "classes that the training captions seldom name",
    "common_classes": "classes that the training captions name",
}
MODALITIES = {"effective_rank_image": "images", "effective_rank_text": "captions"}


def is_same_model(inputs: ReportInputs) -> bool:
    """Return whether the refined model has the base's weights."""
    return inputs.base.results["weights_digest"] == inputs.refined.results["weights_digest"]


def breakdowns(inputs: ReportInputs) -> list[str]:
    """Return what is broken in the refined model, a sentence each; with any of them it is not to be used."""
    found = [] if is_same_model(inputs) else [*_answers(inputs), *_collapsed(inputs)]
    return [*found, *_val_loss(inputs, LOSS_SOARED)]


def doubts(inputs: ReportInputs) -> list[str]:
    """Return what makes the numbers or the training doubtful, a sentence each."""
    found = [text for text in _val_loss(inputs, LOSS_ROSE) if text not in _val_loss(inputs, LOSS_SOARED)]
    if is_same_model(inputs):
        found.append("The refined model has the weights of the base: nothing was trained.")
    for row in inputs.comparison:
        measure = row.before
        if row.adjusted_p is not None and measure.kind != "choice" and 0 < measure.floor >= measure.interval.low:
            found.append(
                f"The base itself is not measurably above what no model gives on {measure.name} "
                f"({page.percent(measure.value)} against {page.percent(measure.floor)}\u00a0%): check that captions "
                "and labels belong to their images."
            )
    return found


def lost_classes(inputs: ReportInputs) -> list[str]:
    """Return where classes that the training captions seldom name, or the others, are named worse, a sentence each.

    A fall of the one can hide behind a rise of the other; neither is a headline, and no correction is made for their
    number.
    """
    fell = [row for row in inputs.comparison if row.before.score in CLASS_GROUPS and row.difference.high < 0]
    return [
        f"On {row.before.set_name}, {row.before.task} loses on {CLASS_GROUPS[row.before.score]}: "
        f"{page.percent(row.before.value)} → {page.percent(row.after.value)}\u00a0%, "
        f"{page.points(row.difference.value)} points ({page.points(row.difference.low)} to "
        f"{page.points(row.difference.high)})."
        for row in fell
    ]


def left_out(inputs: ReportInputs) -> list[str]:
    """Return why images of the evaluated sets were left out, and which might have been, a sentence for each reason."""
    return [
        f"{count} image{'s' if count > 1 else ''} of {name} left out: {reason}."
        for name, part in inputs.parts.items()
        for reason, count in (part.manifest.get("filtered") or {}).items()
    ] + [
        f"{count} image{'s' if count > 1 else ''} of {name} similar to one in a training part, as a smaller copy is: "
        "kept, and named in similar.jsonl of the shards."
        for name, part in inputs.parts.items()
        if (count := part.manifest.get("similar_to_trained"))
    ]


def truncated(inputs: ReportInputs) -> list[str]:
    """Return which texts are longer than the model reads, a sentence for each kind, set and model that differs."""
    found: list[str] = []
    for name, block in inputs.base.sets.items():
        for kind, base in block["truncated"].items():
            refined = inputs.refined.sets[name]["truncated"][kind]
            readers = {"model": base} if base == refined else {"base": base, "refined model": refined}
            for reader, facts in readers.items():
                found += [describe_truncation(f"{kind} of {name}", facts, reader)] if facts["num_truncated"] else []
    for name, part in inputs.manifests["cache_teacher"].get("parts", {}).items():
        for reader, facts in part.get("truncated", {}).items():
            found.append(describe_truncation(f"captions of {name}", facts, reader))
    return found


def _answers(inputs: ReportInputs) -> Iterator[str]:
    for name in inputs.sets:
        before, after = (Variant(one).block(name, "classes") for one in (inputs.base, inputs.refined))
        for task, block in after.items():
            was, now = before[task]["answers"], block["answers"]
            given = f"{now['num_given']} of {now['num_classes']} classes are ever answered (before: {was['num_given']})"
            few = now["num_given"] < FEWER * now["num_present"] and now["num_given"] < LOST * was["num_given"]
            if few or now["num_given"] < FEWER * was["num_given"]:
                yield f"On {name}: {task} only {given}."
            share, true = now["favourite_share"], now["favourite_true_share"]
            much, drifted = max(FAVOURED, 2 * true), 1 - share < FEWER * (1 - was["favourite_share"])
            if share > much and (was["favourite_share"] <= much or drifted):
                yield (
                    f"On {name}: {task} answers drift to one class: {page.percent(share)}\u00a0% of them are "
                    f"`{now['favourite']}`, which {page.percent(true)}\u00a0% of the images are."
                )


def _collapsed(inputs: ReportInputs) -> Iterator[str]:
    for name in inputs.with_captions:
        blocks: list[dict[str, Any]] = [Variant(one).block(name, "gap") for one in (inputs.base, inputs.refined)]
        for key, modality in MODALITIES.items():
            was, now = (block.get(key) for block in blocks)
            if was is not None and now is not None and now < FEWER * was:
                yield (
                    f"The features of {modality} on {name} collapsed: they spread over {now:.0f} directions, before "
                    f"over {was:.0f} (effective rank)."
                )


def _val_loss(inputs: ReportInputs, times: float) -> list[str]:
    """Say that the loss on `val` rose to so many times what it was, if it did."""
    losses = inputs.manifests["refine"].get("val_loss")
    if losses is None or losses["before"] < NO_LOSS or losses["after"] <= times * losses["before"]:
        return []
    return [
        f"The loss on part val, which the run does not train on, rose from {page.number(losses['before'])} to "
        f"{page.number(losses['after'])}."
    ]
