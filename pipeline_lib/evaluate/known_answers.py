"""What the base model scores on a set, held against what it is known to score there.

Known answers are the user's (`sources.known_answers`) or published ones (`published`). The user's stop the evaluation
where they are missed: whoever writes one is sure of it. A published one that is missed is a warning, which stands in
results.json and in the report as well, because a table that came with the library cannot know every copy of a set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import Part, prompts_digest
from pipeline_lib.evaluate.embedding import prompt_templates
from pipeline_lib.evaluate.published import Published, find_published
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results.folders import CENTRED
from pipeline_lib.results.measure import Measure

log = logging.getLogger(__name__)
SHOWN = 16  # digits of a digest in messages
Row = dict[str, Any]


def check_known_answers(
    part: Part, numbers: Mapping[str, float], prompts: Mapping[str, str], facts: Mapping[str, Any]
) -> list[Row]:
    """Compare the base model's numbers with those that the set pins for it, and with published ones.

    Args:
        part: The set; its manifest may hold `known_answers`, see `sources.known_answers.read_known_answers`.
        numbers: What was measured on it, see `flat.flat_metrics`.
        prompts: See `prompts_by_metric`.
        facts: Of the model.

    Returns:
        A row for each answer that is of this model, these prompts and this many images: {"set", "metric", "value",
        "expected", "tolerance", "source", "met"}.

    Raises:
        UserError: A number is farther from an answer of the user than the tolerance, or is not measured.
    """
    return [*_check_own(part, numbers, prompts, facts), *_check_published(part, numbers, prompts, facts)]


def prompts_by_metric(part: Part, measures: Iterable[Measure], settings: EvaluateSettings) -> dict[str, str]:
    """Return the digest of the prompts that each zero-shot number of a set was measured with, and log the headlines'.

    Args:
        part: The set.
        measures: What was measured on it.
        settings: Which prompts were used.

    Returns:
        {metric: `prompts_digest`}.
    """
    found = {}
    for measure in measures:
        if measure.kind in ("zero_shot", "calibration"):
            task = part.tasks[measure.task]
            templates = prompt_templates(task["templates"], settings.ensemble, settings.prompt)[measure.prompt]
            found[measure.key] = prompts_digest(task["classnames"], templates)
            if measure.is_headline:
                log.info("%s: %s was measured with prompts %.*s", part.name, measure.key, SHOWN, found[measure.key])
    return found | {f"{CENTRED}_{key}": digest for key, digest in found.items()}


def _check_own(
    part: Part, numbers: Mapping[str, float], prompts: Mapping[str, str], facts: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield a row for each answer of the user that is met."""
    known = part.manifest.get("known_answers") or {}
    own = [(name, answer) for name, answers in known.items() for answer in answers if _is_for(answer["model"], facts)]
    met = 0
    for name, answer in own:
        if name not in numbers:
            raise UserError(f"{part.name}: known answers: no metric {name!r}; there are {', '.join(numbers)}")
        if not _is_of_this_set(part, name, answer, prompts.get(name)):
            continue
        row = _row(part, name, numbers[name], answer, "known_answers.json")
        if not row["met"]:
            raise UserError(
                f"{part.name}: the base model scores {name} {row['value']:.6g}, its known answer is "
                f"{row['expected']:g} ± {row['tolerance']:g}; check weights, preprocessing, prompts and data, or "
                "mend the known answer beside the set"
            )
        met += 1
        yield row
    if known:
        log.info("%s: %d known answers met, of %d in its file", part.name, met, sum(map(len, known.values())))


def _is_of_this_set(part: Part, name: str, answer: Mapping[str, Any], measured_with: str | None) -> bool:
    """Return whether an answer is for these prompts and this many images; say it where it is not."""
    pinned, num_images = answer.get("prompts"), answer.get("num_images")
    faults = []
    if pinned and not (measured_with or "").startswith(pinned):
        with_what = f"with prompts {measured_with[: max(SHOWN, len(pinned))]}" if measured_with else "without prompts"
        faults.append(f"it is for prompts {pinned}, measured was {with_what}")
    if num_images not in (None, part.num_samples):
        faults.append(f"it is for {num_images:,} images, the set has {part.num_samples:,}")
    if faults:
        log.warning("%s: known answer of %s is skipped: %s", part.name, name, "; ".join(faults))
    return not faults


def _check_published(
    part: Part, numbers: Mapping[str, float], prompts: Mapping[str, str], facts: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield a row for each published answer of the model on the set, if the set is one that the table knows."""
    found = find_published(part, prompts)
    if found is None:
        return
    for name, answers in found.answers.items():
        for answer in answers:
            if _is_for(answer["model"], facts) and name in numbers:
                yield _published_row(part, name, numbers[name], answer, found)


def _published_row(part: Part, name: str, value: float, answer: Mapping[str, Any], found: Published) -> Row:
    row = _row(part, name, value, answer, f"published: {found.name}")
    measured = f"{part.name}: the base model scores {name} {value:.6g}"
    expected = f"{row['expected']:g} ± {row['tolerance']:g}"
    if row["met"]:
        log.info("%s, as is published for %s (%s)", measured, found.name, expected)
    else:
        log.warning(
            "%s, but %s is published to score %s on %s, which this set is by %s (%s); check the weights and their "
            "activation, the preprocessing and the data before you trust the other numbers",
            *(measured, answer["model"], expected, found.name, found.known_by, ", ".join(answer["runs"])),
        )
    return row


def _row(part: Part, name: str, value: float, answer: Mapping[str, Any], source: str) -> Row:
    return {
        "set": part.name,
        "metric": name,
        "value": value,
        "expected": answer["value"],
        "tolerance": answer["tolerance"],
        "source": source,
        "met": abs(value - answer["value"]) <= answer["tolerance"],  # of NaN: no
    }


def _is_for(named: str | None, facts: Mapping[str, Any]) -> bool:
    """Return whether a known answer is that of the model with these `facts`."""
    source = facts.get("source") or {}
    return (
        named is None
        or facts["weights_digest"].startswith(named)
        or (source.get("kind") == "open_clip" and named == f"{source['model']}/{source['pretrained']}")
    )
