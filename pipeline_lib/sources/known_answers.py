"""What models are known to score on a set, read from beside it; `evaluate` holds the base model against it.

The file is `known_answers.json` in an evaluation set's folder (`<stem>.known_answers.json` beside a set that is a
file), for a part of the data `<part>.known_answers.json` in the folder `data.root`:

    {"image_to_text_recall_at_1": {"value": 0.504, "tolerance": 0.002, "model": "ViT-B-32-quickgelu/openai"},
     "zero_shot_class_top1": {"value": 0.633, "tolerance": 0.003, "prompts": "e6e4ea39", "num_images": 50000}}

Metrics are named as in data/eval/base.json. `model` is the architecture and tag of open_clip or the beginning of a
weights digest, and without it the answer is every base's; several models stand in a list. `prompts` is the beginning of
the digest of the class names and templates that a zero-shot number was measured with: the log of the stages `shard` and
`evaluate` says it, and the manifest of the part (`tasks`). An answer for other prompts, or for another number of images
than `num_images`, is skipped with a warning. They are answers for the whole set, so a trial run with a `limit` is not
held to them.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import is_number
from pipeline_lib.sources.settings import DataSettings

FILE = "known_answers.json"
PINS = ("prompts", "num_images")  # what an answer may be pinned to, beside the model
log = logging.getLogger(__name__)


def read_known_answers(data: DataSettings, name: str) -> dict[str, list[dict[str, Any]]]:
    """Read what models are known to score on part or evaluation set `name`: {metric: answers}, empty without a file.

    Raises:
        UserError: The file is not of this form.
    """
    if name in data.evaluation:
        chosen = data.evaluation[name]
        root, limit = Path(data.evaluation_root, chosen.path), chosen.limit
        path = root / FILE if os.path.isdir(root) else root.with_suffix(f".{FILE}")
    else:
        path, limit = Path(data.root, f"{name}.{FILE}"), data.limit
    if not os.path.isfile(path):
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
    """Check one block of a known-answer file."""
    fields = answer if isinstance(answer, dict) else {}
    numbers = [fields.get(key) for key in ("value", "tolerance")]
    fits = all(is_number(number) for number in numbers)
    if not fits or fields["tolerance"] < 0 or fields.keys() - {"value", "tolerance", "model", *PINS}:
        raise UserError(
            f"{path}: {metric}: expected `value` and `tolerance` (>= 0) and, if you like, `model`, `prompts`, "
            "`num_images`"
        )
    model, prompts, num_images = (fields.get(key) for key in ("model", *PINS))
    if model is not None and not (isinstance(model, str) and len(model) >= 8):
        raise UserError(f"{path}: {metric}: `model` must be `<architecture>/<tag>` or 8 and more digits of a digest")
    if prompts is not None and not (isinstance(prompts, str) and re.fullmatch("[0-9a-f]{8,64}", prompts)):
        raise UserError(f"{path}: {metric}: `prompts` must be the first 8 or more hex digits of the prompts' digest")
    if num_images is not None and not (type(num_images) is int and num_images > 0):
        raise UserError(f"{path}: {metric}: `num_images` must be a whole number above 0")
    pins = {key: fields[key] for key in PINS if fields.get(key) is not None}
    return {"value": fields["value"], "tolerance": fields["tolerance"], "model": model, **pins}
