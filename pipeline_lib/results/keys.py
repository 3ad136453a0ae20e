"""What the numbers of an evaluated set are called, and which of them are headlines: one spelling everywhere.

No torch here, so that whatever only reads results starts at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Named(NamedTuple):
    """A number of what was measured on a set, under the one name by which everything reports it."""

    key: str  # MLflow and DVC: `<set>/<key>`
    leaf: Any  # the number, or whatever stands for it with its interval or items
    is_headline: bool
    direction: str = ""  # of a recall, with `k`
    k: int = 0
    task: str = ""  # of a zero-shot score, with `prompt` and `score`
    prompt: str = ""
    score: str = ""


def recalls(retrieval: Mapping[str, Any]) -> Iterator[Named]:
    """The recalls of a block `retrieval`; at 1 they are headlines."""
    for key, leaf in retrieval.items():
        direction, found, k = key.partition("_recall_at_")
        if found:
            yield Named(key, leaf, int(k) == 1, direction, int(k))


def zero_shot_scores(zero_shot: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Named]:
    """The scores of a block `zero_shot`, the template ensemble's first; its top-1 of each task is a headline."""
    for task, prompts in zero_shot.items():
        for prompt in sorted(prompts):
            middle = "" if prompt == "ensemble" else f"_{prompt}"
            for score in ("top1", "mean_per_class", "top5", "ece"):
                if score in prompts[prompt]:
                    key = f"zero_shot_{task}{middle}_{score}"
                    is_headline = not middle and score == "top1"
                    yield Named(key, prompts[prompt][score], is_headline, task=task, prompt=prompt, score=score)
