"""OpenMoji's single pictures, each to be named: what the default's base model knew before it was refined.

    data/openmoji/
        index.json        the packages with the hashes of what they install

`python -m pipeline_lib.sources.openmoji` prints the index anew for what is installed. Two splits of the same concepts:

    moved     every picture in colour, at a size, a place and on a background on which no part of the scenes shows any
    lines     the black lines of every picture, large on white: a shift, as ImageNet-Sketch is one of ImageNet

Tasks are `name`, with as many classes as there are concepts, and of `moved` also `category`. OpenMoji is CC BY-SA 4.0:
the attribution stands in index.json and must be shown wherever its images are. As evaluation sets in params.yaml:

    data:
      format: scenes
      root: data/openmoji
      annotations: null
      images: null
      parts: {base: base, refine: refine, val: val, eval: eval}
      limit: null
      evaluation_root: data/evaluation
      evaluation:
        naming: {format: openmoji, path: ../openmoji, split: moved}
        line_drawings: {format: openmoji, path: ../openmoji, split: lines, shift_of: naming}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.openmoji_concepts import Concept, find_concepts
from pipeline_lib.sources.openmoji_drawing import SIZE, DrawnImage, Placed
from pipeline_lib.sources.openmoji_packages import describe_installed, read_index
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, Task
from pipeline_lib.sources.scene_layout import Draw, alone

TEMPLATES = ("a picture of {}", "{}")
SPLITS = ("moved", "lines")


def open_set(place: Place) -> Source:
    """Open the pictures.

    Raises:
        UserError: A package is missing or is not of the version that index.json names, or `split` names neither split.
    """
    place.refuse("images", "annotations")
    if place.split not in SPLITS:
        raise UserError(f"{place.name}.split: format openmoji has {' and '.join(SPLITS)}; name one of them")
    _, index = read_index(place.root)
    pictures = index["pictures"]
    concepts, rejected = find_concepts()
    tasks = {"name": name_task(concepts)}
    categories = sorted({concept.category for concept in concepts})
    if place.split == "moved":
        tasks["category"] = Task(tuple(categories), TEMPLATES)
    return place.make_source(
        lambda: _samples(concepts, categories, pictures["sha256"]),
        splits=SPLITS,
        captioned=False,
        labelled=True,
        tasks=tasks,
        rejected=rejected,
        facts={"license": pictures["license"], "attribution": pictures["attribution"]},
    )


def name_task(concepts: Sequence[Concept]) -> Task:
    """Return the task of naming a picture; its classes are the concepts in their order."""
    return Task(tuple(concept.phrase for concept in concepts), TEMPLATES)


def _samples(concepts: Sequence[Concept], categories: Sequence[str], font_digest: str) -> Iterator[Sample]:
    for number, concept in enumerate(concepts):
        name, category = {"name": number}, {"category": categories.index(concept.category)}
        moved = alone(Draw(f"moved {concept.key}"), concept, font_digest)
        lines = DrawnImage((Placed(concept.emoji, SIZE, 0, 0),), "white", font_digest, lines_only=True)
        yield Sample(f"moved-{concept.key}", moved, "png", labels={**name, **category}, split="moved")
        yield Sample(f"lines-{concept.key}", lines, "png", labels=name, split="lines")


def print_index() -> None:
    """Print index.json for what is installed; the numbers of the scenes stay as they are in data/openmoji."""
    written = Path("data/openmoji/index.json")
    scenes = json.loads(written.read_text(encoding="utf-8")).get("scenes") if written.is_file() else None
    print(json.dumps({**describe_installed(), "scenes": scenes}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    print_index()
