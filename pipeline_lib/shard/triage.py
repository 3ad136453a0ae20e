"""Which samples are used: those that fail a rule are quarantined, which means left out, counted and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline_lib.shard.images import Look, look_at
from pipeline_lib.shard.records import Record
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.samples import Sample, Task

MAX_CAPTIONS = 1000  # of an image; a table that is joined wrongly gives one image all captions, and a line of the index


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all jobs of a set share."""

    work: Path
    settings: ShardSettings
    captioned: bool  # whether a sample without a caption is a fault
    labelled: bool = False  # whether a sample without a label is a fault
    tasks: Mapping[str, Task]

    @property
    def output(self) -> Path:
        """Folder that will be published."""
        return self.work / "output"


class UsedImage(NamedTuple):
    """The image of a sample that is used."""

    data: bytes  # the file
    look: Look


def triage(sample: Sample, record: Record, rules: Rules, excluded: Mapping[tuple[str, str], str]) -> UsedImage | None:
    """Return the image of a sample that is used, or None; one that is not is counted in `record` here.

    Args:
        sample: Read here.
        record: Of the shard and part that the sample belongs to.
        rules: Of its set.
        excluded: {(part, key): reason} of the samples that must not be used.
    """
    record.dropped_captions += sample.empty_captions
    reason = excluded.get((record.part, sample.key))
    if reason is not None:
        record.excluded.append((sample.key, reason))
        return None
    try:
        _check_texts(sample, rules)
        return _read_image(sample, rules.settings)
    except ValueError as fault:
        record.quarantined.append((sample.key, str(fault)))
        return None


def _check_texts(sample: Sample, rules: Rules) -> None:
    if rules.captioned and not sample.captions:
        raise ValueError("no caption" if sample.empty_captions == 0 else "only empty captions")
    if rules.labelled and not sample.labels:
        raise ValueError("no label")
    if len(sample.captions) > MAX_CAPTIONS:
        raise ValueError(f"{len(sample.captions)} captions, more than {MAX_CAPTIONS}")
    if any(len(caption) > rules.settings.max_caption_chars for caption in sample.captions):
        raise ValueError("a caption is longer than shard.max_caption_chars")


def _read_image(sample: Sample, settings: ShardSettings) -> UsedImage:
    try:
        if sample.image.size > settings.max_image_bytes:
            raise ValueError(f"{sample.image.size} bytes, more than shard.max_image_bytes")
        data = sample.image.read()
    except FileNotFoundError:
        raise ValueError(f"no such file: {sample.image.where}") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}): {sample.image.where}") from None
    if not data:
        raise ValueError("an empty file")
    return UsedImage(data, look_at(data, settings.max_image_pixels))
