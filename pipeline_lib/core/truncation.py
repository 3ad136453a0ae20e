"""Texts that are longer than a model reads: how many there are, and how many different ones are left of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline_lib.core.shards import text_digest


@dataclass(slots=True)
class Truncation:
    """Counts texts of one kind, such as the captions of a part."""

    context_length: int
    num_texts: int = 0
    num_truncated: int = 0
    _texts: set[bytes] = field(default_factory=set)  # digests of those that are truncated
    _read: set[tuple[int, ...]] = field(default_factory=set)  # what is left of these

    def add(self, num_texts: int, truncated: Sequence[str], token_ids: Iterable[Sequence[int]]) -> None:
        """Count so many texts, those of them that are truncated, and the token ids that are read of these."""
        self.num_texts += num_texts
        self.num_truncated += len(truncated)
        self._texts.update(map(text_digest, truncated))
        self._read.update(map(tuple, token_ids))

    def facts(self) -> dict[str, int]:
        """Return the counts; the distinct ones are of the truncated texts."""
        counts = {"num_texts": self.num_texts, "num_truncated": self.num_truncated}
        distinct = {"num_distinct": len(self._texts), "num_distinct_read": len(self._read)}
        return {"context_length": self.context_length, **counts, **distinct}


def truncated_share(facts: Mapping[str, int]) -> float:
    """Return which share of the texts is longer than the model reads; 0 of none."""
    return facts["num_truncated"] / facts["num_texts"] if facts["num_texts"] else 0.0


def describe_truncation(what: str, facts: Mapping[str, int], reader: str = "model") -> str:
    """Say in a sentence that texts are longer than the model (or student, or teacher) reads; some must be.

    >>> counts = {"num_texts": 64, "num_truncated": 64, "num_distinct": 60, "num_distinct_read": 8}
    >>> describe_truncation("captions of eval", {"context_length": 77, **counts})
    '64 of 64 captions of eval are longer than the 77 tokens that the model reads; of 60 different ones 8 are left.'
    """
    count, distinct, read = facts["num_truncated"], facts["num_distinct"], facts["num_distinct_read"]
    said = f"{count:,} of {facts['num_texts']:,} {what} {'is' if count == 1 else 'are'} longer than the "
    left = f"; of {distinct:,} different ones {read:,} {'is' if read == 1 else 'are'} left" if read < distinct else ""
    return f"{said}{facts['context_length']} tokens that the {reader} reads{left}."
