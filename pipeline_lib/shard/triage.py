"""Which samples are used: those that fail a rule are quarantined, which means left out, counted and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.shard.images import image_fault
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


def triage(sample: Sample, record: Record, rules: Rules, excluded: Mapping[tuple[str, str], str]) -> bytes | None:
    """Return the image file of a sample that is used, or None; one that is not is counted in `record` here.

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
    fault = _text_fault(sample, rules)
    data = b""
    if fault is None:
        data, fault = _read_image(sample, rules.settings)
    if fault is not None:
        record.quarantined.append((sample.key, fault))
        return None
    return data


def _text_fault(sample: Sample, rules: Rules) -> str | None:
    if rules.captioned and not sample.captions:
        return "no caption" if sample.empty_captions == 0 else "only empty captions"
    if rules.labelled and not sample.labels:
        return "no label"
    if len(sample.captions) > MAX_CAPTIONS:
        return f"{len(sample.captions)} captions, more than {MAX_CAPTIONS}"
    if any(len(caption) > rules.settings.max_caption_chars for caption in sample.captions):
        return "a caption is longer than shard.max_caption_chars"
    return None


def _read_image(sample: Sample, settings: ShardSettings) -> tuple[bytes, str | None]:
    """Return the bytes of the image file, and why the sample is quarantined, or None."""
    try:
        if sample.image.size > settings.max_image_bytes:
            return b"", f"{sample.image.size} bytes, more than shard.max_image_bytes"
        data = sample.image.read()
    except FileNotFoundError:
        return b"", f"no such file: {sample.image.where}"
    except OSError as error:
        return b"", f"cannot be read ({error.strerror}): {sample.image.where}"
    return data, image_fault(data, settings.max_image_pixels) if data else "an empty file"
