"""What a job found and wrote, as it returns from its worker, goes into the manifest and is kept in the work folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline_lib.core.shards import IndexEntry, text_digest
from pipeline_lib.shard.images import Look


@dataclass(slots=True)
class Record:
    """What one shard of one part holds."""

    job: str
    part: str
    file: str  # the tar: its name in the part's folder, or its path if it is indexed in place
    index: str  # name in the part's folder
    sha256: str = ""
    index_sha256: str = ""
    num_bytes: int = 0
    num_samples: int = 0
    num_captions: int = 0
    max_caption_chars: int = 0
    dropped_captions: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    excluded: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    images: bytearray = field(default_factory=bytearray)  # `image_digest` of each image, in order
    pixels: bytearray = field(default_factory=bytearray)  # `Look.pixels` of each image, in order
    outlines: bytearray = field(default_factory=bytearray)  # `Look.outline` of each image, in order
    captions: bytearray = field(default_factory=bytearray)  # `text_digest` of each caption, in order

    @property
    def read(self) -> int:
        """Samples of the source, whatever became of them."""
        return self.num_samples + len(self.quarantined) + len(self.excluded)

    def add(self, entry: IndexEntry, look: Look) -> None:
        """Count a sample that is used."""
        self.num_samples += 1
        self.num_captions += len(entry.captions)
        self.max_caption_chars = max(self.max_caption_chars, *map(len, entry.captions), 0)
        self.images += image_digest(entry.sha256)
        self.pixels += look.pixels
        self.outlines += look.outline
        for caption in entry.captions:
            self.captions += text_digest(caption)


@dataclass(slots=True)
class Result:
    """What a job returns."""

    records: list[Record] = field(default_factory=list)
    in_no_part: int = 0  # samples
    ignored: dict[str, int] = field(default_factory=dict)  # members of a tar, by reason
    named: list[tuple[str, str]] = field(default_factory=list)  # (line of a list file, image that it names)
    resumed: bool = False

    def to_json(self, plan: str) -> str:
        """Return the result as JSON, with the `plan` of the job that it belongs to."""
        return json.dumps({"plan": plan, **dataclasses.asdict(self)}, default=bytearray.hex)


def read_result(text: str, plan: str) -> Result | None:
    """Return the result that `Result.to_json` wrote, as resumed, or None if it is of another plan."""
    content = json.loads(text)
    if content["plan"] != plan:
        return None
    records = [_read_record(fields) for fields in content["records"]]
    named = [(line, where) for line, where in content["named"]]
    return Result(records, content["in_no_part"], content["ignored"], named, resumed=True)


def image_digest(sha256: str) -> bytes:
    """Return the 16 bytes by which images are compared: the first half of their hex SHA-256."""
    return bytes.fromhex(sha256[:32])


def _read_record(fields: Mapping[str, Any]) -> Record:
    pairs = {name: [(key, reason) for key, reason in fields[name]] for name in ("quarantined", "excluded")}
    digests = {name: bytearray.fromhex(fields[name]) for name in ("images", "pixels", "outlines", "captions")}
    return Record(**{**fields, **pairs, **digests})
