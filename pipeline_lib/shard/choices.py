"""Which choices of a set are scored: those whose images and texts are all there. The others are counted and named."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline_lib.core.choices import Choice
from pipeline_lib.core.errors import UserError
from pipeline_lib.shard.records import Record
from pipeline_lib.shard.set_writer import SetWriter, first_named

log = logging.getLogger(__name__)


def settle_choices(writer: SetWriter, part: str) -> list[Choice]:
    """Return every choice of a set, and of those that cannot be scored why.

    Raises:
        UserError: None can be scored, or too many have bad texts.
    """
    gone = _left_out_images(writer.records[part])
    limits = writer.rules.settings
    bad_texts = {choice.key: _text_fault(choice, limits.max_caption_chars) for choice in writer.source.choices}
    found = [replace(one, left_out=bad_texts[one.key] or _image_fault(one, gone)) for one in writer.source.choices]
    reasons = [f"{choice.key}: {choice.left_out}" for choice in found if choice.left_out]
    num_bad = sum(map(bool, bad_texts.values()))
    if len(reasons) == len(found) or num_bad > limits.max_bad_share * len(found):
        raise UserError(
            f"{writer.source.name}: {len(reasons)} of the {len(found)} choices cannot be scored, {num_bad} for their "
            f"texts (shard.max_bad_share): {first_named(reasons)}; mend them or leave them out"
        )
    if reasons:
        log.warning("%s: %d of %d choices left out: %s", part, len(reasons), len(found), first_named(reasons))
    hopeless = [choice.key for choice in found if choice.is_unanswerable and not choice.left_out]
    if hopeless:
        why = "have the same on both sides, so that every model gets them wrong"
        log.warning("%s: %d of %d choices %s: %s", part, len(hopeless), len(found), why, first_named(hopeless))
    return found


def count_choices(choices: Sequence[Choice]) -> dict[str, int]:
    """Return how many choices were read, are scored and are left out, and how many no model can get right."""
    used = [choice for choice in choices if not choice.left_out]
    return {
        "read": len(choices),
        "used": len(used),
        "left_out": len(choices) - len(used),
        "unanswerable": sum(choice.is_unanswerable for choice in used),
    }


def _left_out_images(records: Sequence[Record]) -> dict[str, str]:
    """Return {key: reason} of the images that are not in the part."""
    return dict(pair for record in records for pair in (*record.quarantined, *record.excluded))


def _image_fault(choice: Choice, gone: Mapping[str, str]) -> str:
    """Return why a choice lacks an image; empty if it does not."""
    return next((f"its image `{key}` was left out: {gone[key]}" for key in choice.images if key in gone), "")


def _text_fault(choice: Choice, max_chars: int) -> str:
    """Return what is wrong with the texts of a choice; empty if nothing is."""
    if not all(choice.texts):
        return "an empty text"
    return "a text is longer than shard.max_caption_chars" if max(map(len, choice.texts)) > max_chars else ""
