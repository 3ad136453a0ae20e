"""Published scores of OpenAI's ViT-B/32 and ViT-B/16 on sets that clip-benchmark publishes: published.json.

A set is recognised by what it is, not by the name that params.yaml gives it: zero-shot sets by the digest of their
class names and templates (`core.shards.prompts_digest`) and their number of images. Retrieval sets have no prompts, so
they are recognised by their numbers of images and captions and need one of the published names (`mscoco_captions`, or a
folder `wds_mscoco_captions`).

    {"sources": {run: address of the file that holds it},
     "sets": {name: {"num_images", "prompts" or "num_captions",
                     "answers": {metric: [{"model", "value", "tolerance", "runs": {run: value}}]}}}}

`value` is the first of the public `runs` of these weights on the set with the same prompts. `tolerance` is 0.003, or
0.005 where there is one run alone or the set has fewer than 2,500 images (one image is then more than 0.0004), and
always at least a thousandth more than the farthest run: runs of the same weights stand up to 0.006 apart, by their
precision. Sets on which public runs stand farther apart are left out: SVHN (0.21, by the prompts), CLEVR, MNIST and
Caltech-101. `tests/published_prompts.py` says where the digests come from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_lib.core import artifacts
from pipeline_lib.core.shards import Part

TABLE = Path(__file__).with_name("published.json")
TOP1 = "zero_shot_class_top1"  # by whose prompts a set is recognised
KNOWN_BY = {
    True: "its class names, templates and number of images",
    False: "its name and its numbers of images and captions",
}
log = logging.getLogger(__name__)


class Published(NamedTuple):
    """What is published of a set."""

    name: str  # as clip-benchmark calls it
    known_by: str  # how the set was recognised, for messages
    answers: Mapping[str, Sequence[Mapping[str, Any]]]  # by metric


@cache
def read_table() -> dict[str, Any]:
    """Return the content of published.json."""
    return artifacts.read_json(TABLE)


def find_published(part: Part, prompts: Mapping[str, str]) -> Published | None:
    """Return what is published of the set that `part` is, None where the table does not know it.

    Args:
        part: The set.
        prompts: Digest of the prompts by metric, see `known_answers.prompts_by_metric`.
    """
    folder = (part.manifest.get("source") or {}).get("folder", "")
    names = {name.removeprefix("wds_") for name in (part.name, folder)}
    alike = {
        name: known
        for name, known in read_table()["sets"].items()
        if (known["prompts"] == prompts.get(TOP1) if "prompts" in known else name in names)
    }
    for name, known in alike.items():
        if part.num_samples == known["num_images"] and known.get("num_captions") in (None, part.num_captions):
            return Published(name, KNOWN_BY["prompts" in known], known["answers"])
    if alike:
        log.info(
            "%s: is like %s, but not with %d images and %d captions: held to no published score",
            *(part.name, " and ".join(alike), part.num_samples, part.num_captions),
        )
    return None
