"""Choices between texts and images, by which composition is evaluated: the relation table of a set's folder.

    data/shards/<set>/choices.jsonl    a line per choice, see `Choice`

The images are those of the set's samples, named by their keys. The texts stand here and not in the index: a wrong text
is no caption of its image, and nothing that reads captions may take it for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.core import artifacts
from pipeline_lib.core.schema import build

TABLE = "choices.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One image with right and wrong texts, or two images with a text each."""

    key: str
    images: tuple[str, ...]  # keys of one or two samples
    captions: tuple[str, ...]  # right texts of the one image; of two images, the text of each
    negatives: tuple[str, ...] = ()  # wrong texts of the one image
    groups: tuple[str, ...] = ()  # for accuracy by group
    left_out: str = ""  # why it is not scored; empty: it is

    @property
    def is_pair(self) -> bool:
        """Return whether two images are asked for, not one."""
        return len(self.images) == 2

    @property
    def texts(self) -> tuple[str, ...]:
        """Return all texts, the right ones first."""
        return self.captions + self.negatives

    @property
    def is_unanswerable(self) -> bool:
        """Return whether no model can be right, because what it must tell apart is the same."""
        if self.is_pair:
            return self.images[0] == self.images[1] or self.captions[0] == self.captions[1]
        return not set(self.captions).isdisjoint(self.negatives)


def write_choices(folder: Path, choices: Iterable[Choice]) -> None:
    """Write the relation table of the set in `folder`."""
    names = Choice.__slots__
    artifacts.write_jsonl(folder / TABLE, ({name: getattr(choice, name) for name in names} for choice in choices))


def read_choices(folder: Path) -> Iterator[Choice]:
    """Yield every choice of the set in `folder`, those that are left out too.

    Raises:
        UserError: The table is missing, or a line is no choice.
    """
    for number, fields in enumerate(artifacts.read_jsonl(folder / TABLE), 1):
        yield build(Choice, fields, f"{folder / TABLE}: line {number}")
