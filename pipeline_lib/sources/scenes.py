"""The default data set: scenes drawn from OpenMoji's pictures, with texts of two kinds.

    data/openmoji/
        index.json        the packages with the hashes of what they install; the seed and the number of scenes

The index is the pipeline's dependency and is compared with the installation before anything is drawn. A scene is one to
three pictures on a plain background, a pure function of (packages, seed, part, number). Its parts:

    base      scenes with texts such as the web has beside an image (one thing named, a wrong text in 15 %), and every
              picture by itself with its name: what the base model learns from
    refine    scenes with two full descriptions each (names, places, size, background): what refinement trains on
    val       the same, and single pictures of a third of all concepts to be named: to choose on, by both
    eval      the same scenes, to judge by

`base` shows all concepts, the described scenes a quarter of them, by a hash of the key, because a small clean set tells
of a part of what a model knows. What refinement cost is asked with single pictures of all of them, the format
`openmoji`. In params.yaml:

    data:
      format: scenes
      root: data/openmoji
      annotations: null
      images: null
      parts: {base: base, refine: refine, val: val, eval: eval}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.openmoji import name_task
from pipeline_lib.sources.openmoji_concepts import Concept, find_concepts
from pipeline_lib.sources.openmoji_drawing import SIZE, DrawnImage, Placed
from pipeline_lib.sources.openmoji_packages import read_index
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source
from pipeline_lib.sources.scene_captions import descriptions, web_caption
from pipeline_lib.sources.scene_layout import Draw, alone, compose

PARTS = ("base", "refine", "val", "eval")
CAPTIONS = 2  # of a scene


def open_set(place: Place) -> Source:
    """Open the scenes.

    Raises:
        UserError: A package is missing or is not of the version that index.json names, or index.json names no scenes.
    """
    place.refuse("images", "annotations")
    index_file, index = read_index(place.root)
    seed, counts = _read_numbers(index, index_file)
    pictures = index["pictures"]
    concepts, rejected = find_concepts()

    def samples() -> Iterator[Sample]:
        for part, number in counts.items():
            yield from draw_part(part, number, concepts, seed, pictures["sha256"])
        yield from pictures_of_base(concepts, pictures["sha256"])
        yield from pictures_of_val(concepts, seed, pictures["sha256"])

    return place.make_source(
        samples,
        splits=PARTS,
        captioned=True,
        tasks={"name": name_task(concepts)},
        rejected=rejected,
        facts={"license": pictures["license"], "attribution": pictures["attribution"]},
    )


def _read_numbers(index: Mapping[str, Any], index_file: Path) -> tuple[int, dict[str, int]]:
    """Return the seed and the number of scenes of each part."""
    scenes = index.get("scenes")
    keys = ("seed", *PARTS)
    numbers = scenes if isinstance(scenes, dict) else {}
    if numbers.keys() != {*keys} or not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise UserError(f"{index_file}: `scenes` must hold a whole number for each of {', '.join(keys)}")
    return numbers["seed"], {part: numbers[part] for part in PARTS}


def is_described(concept: Concept) -> bool:
    """Say whether a concept is among those that the described scenes show: a quarter of all."""
    return _hash(concept)[0] < 64


def _hash(concept: Concept) -> bytes:
    return hashlib.sha256(concept.key.encode()).digest()


def draw_part(part: str, number: int, concepts: Sequence[Concept], seed: int, font_digest: str) -> Iterator[Sample]:
    """Yield the scenes of a part."""
    shown = concepts if part == "base" else [concept for concept in concepts if is_described(concept)]
    for place in range(number):
        draw = Draw(f"{seed} {part} {place}")
        scene = compose(draw, shown)
        if part == "base":
            captions = tuple(web_caption(draw, scene, concepts) for _ in range(CAPTIONS))
        else:
            captions = descriptions(draw, scene, CAPTIONS)
        yield Sample(f"{part}-{place:05}", scene.image(font_digest), "png", captions, split=part)


def pictures_of_base(concepts: Sequence[Concept], font_digest: str) -> Iterator[Sample]:
    """Yield every picture by itself with its bare name, as large as the image, on white."""
    for concept in concepts:
        image = DrawnImage((Placed(concept.emoji, SIZE, 0, 0),), "white", font_digest)
        yield Sample(f"base-{concept.key}", image, "png", (concept.name,), split="base")


def pictures_of_val(concepts: Sequence[Concept], seed: int, font_digest: str) -> Iterator[Sample]:
    """Yield the pictures of a third of the concepts, each alone, as in format `openmoji` but in other places."""
    for number, concept in enumerate(concepts):
        if _hash(concept)[1] < 85:
            image = alone(Draw(f"{seed} val {concept.key}"), concept, font_digest)
            captions = f"a picture of {concept.phrase}", f"{concept.phrase} and nothing else"
            yield Sample(f"val-{concept.key}", image, "png", captions, labels={"name": number}, split="val")
