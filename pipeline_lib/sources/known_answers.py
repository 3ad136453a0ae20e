"""What models are known to score on a set: read from beside it, held against what the base model scores.

The file is `known_answers.json` in an evaluation set's folder (`<stem>.known_answers.json` beside a set that is a
file), for a part of the data `<part>.known_answers.json` in the folder `data.root`:

    {"image_to_text_recall_at_1": {"value": 0.504, "tolerance": 0.002, "model": "ViT-B-32-quickgelu/openai"}}

Metrics are named as in data/eval/base.json. `model` is the architecture and tag of open_clip or the beginning of a
weights digest, and without it the answer is every base's; several models stand in a list. They are answers for the
whole set, so a trial run with a `limit` is not held to them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import Part

FILE = "known_answers.json"
log = logging.getLogger(__name__)


def read(data: config.Data, name: str) -> dict[str, list[dict[str, Any]]]:
    """What models are known to score on part or evaluation set `name`; empty where no file says so.

    Raises:
        UserError: The file is not of this form.
    """
    if name in data.evaluation:
        chosen = data.evaluation[name]
        root, limit = Path(data.evaluation_root, chosen.path), chosen.limit
        path = root / FILE if root.is_dir() else root.with_suffix(f".{FILE}")
    else:
        path, limit = Path(data.root, f"{name}.{FILE}"), data.limit
    if not path.is_file():
        return {}
    if limit is not None:
        log.info("%s: not checked in a trial run with `limit`", path)
        return {}
    content = artifacts.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected {{"metric": {{"value": 0.5, "tolerance": 0.002, "model": "..."}}}}')
    return {
        metric: [_answer(path, metric, one) for one in (answers if isinstance(answers, list) else [answers])]
        for metric, answers in content.items()
    }


def _answer(path: Path, metric: str, answer: Any) -> dict[str, Any]:
    """One block of a known-answer file, checked."""
    fields = answer if isinstance(answer, dict) else {}
    numbers = [fields.get(key) for key in ("value", "tolerance")]
    fits = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    model = fields.get("model")
    if not fits or fields["tolerance"] < 0 or fields.keys() - {"value", "tolerance", "model"}:
        raise UserError(f"{path}: {metric}: expected `value` and `tolerance` (>= 0) and, if you like, `model`")
    if model is not None and not (isinstance(model, str) and len(model) >= 8):
        raise UserError(f"{path}: {metric}: `model` must be `<architecture>/<tag>` or 8 and more digits of a digest")
    return {"value": fields["value"], "tolerance": fields["tolerance"], "model": model}


def check(part: Part, numbers: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Compare the base model's numbers with those that the set pins for it, if it does.

    Args:
        part: The set; its manifest may hold `known_answers`, see `read`.
        numbers: What was measured on it, see `evaluation.flat_metrics`.
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
    """Whether a known answer is that of the model with these `facts`."""
    source = facts.get("source") or {}
    return (
        named is None
        or facts["weights_digest"].startswith(named)
        or (source.get("kind") == "open_clip" and named == f"{source['model']}/{source['pretrained']}")
    )
