"""What the base model scores on a set, held against what it is known to score there (`sources.known_answers`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import Part

log = logging.getLogger(__name__)


def check_known_answers(part: Part, numbers: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Compare the base model's numbers with those that the set pins for it, if it does.

    Args:
        part: The set; its manifest may hold `known_answers`, see `sources.known_answers.read_known_answers`.
        numbers: What was measured on it, see `run.flat_metrics`.
        facts: Of the model.

    Raises:
        UserError: A number is farther from its known answer than the tolerance, or is not measured.
    """
    known = part.manifest.get("known_answers") or {}
    own = [(name, answer) for name, answers in known.items() for answer in answers if _is_for(answer["model"], facts)]
    for name, answer in own:
        if name not in numbers:
            raise UserError(f"{part.name}: known answers: no metric {name!r}; there are {', '.join(numbers)}")
        if not abs(numbers[name] - answer["value"]) <= answer["tolerance"]:
            raise UserError(
                f"{part.name}: the base model scores {name} {numbers[name]:.6g}, its known answer is "
                f"{answer['value']:g} ± {answer['tolerance']:g}; check weights, preprocessing, prompts and data, or "
                "mend the known answer beside the set"
            )
    if known:
        log.info("%s: %d known answers met, of %d in its file", part.name, len(own), sum(map(len, known.values())))


def _is_for(named: str | None, facts: Mapping[str, Any]) -> bool:
    """Return whether a known answer is that of the model with these `facts`."""
    source = facts.get("source") or {}
    return (
        named is None
        or facts["weights_digest"].startswith(named)
        or (source.get("kind") == "open_clip" and named == f"{source['model']}/{source['pretrained']}")
    )
