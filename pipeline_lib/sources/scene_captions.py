"""The texts of a scene: as the web has them beside an image, and as a person describes what is to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline_lib.sources.openmoji_concepts import Concept
from pipeline_lib.sources.scene_layout import Draw, Kind, Scene

WRONG = 0.15  # share of the web's texts that belong to another image
_WEB_WORDS = ("icon", "clipart", "free download", "sticker", "png", "image", "vector", "stock photo")
# {0}, {1}, {2}: what is to be seen; {c}: the background's colour.
_DESCRIPTIONS: Mapping[Kind, Sequence[str]] = {
    "large": (
        "a close-up of {0} on a {c} background",
        "{0} filling most of the picture, with {c} behind",
        "a large picture of {0} on {c}",
    ),
    "small": (
        "{0}, quite small, on a {c} background",
        "{0}, tiny, with a lot of {c} around",
        "a small picture of {0} on {c}",
    ),
    "beside": (
        "{0} to the left of {1} on a {c} background",
        "{1} to the right of {0}, with {c} behind them",
        "{0} and {1} side by side on {c}",
        "on the left {0}, on the right {1}, {c} background",
    ),
    "above": (
        "{0} above {1} on a {c} background",
        "{1} below {0}, with {c} behind them",
        "{0} and {1}, one above the other, on {c}",
        "{0} at the top and {1} at the bottom, {c} background",
    ),
    "three": (
        "{0}, {1} and {2} on a {c} background",
        "three things on {c}: {0}, {1} and {2}",
        "{0} and {1} with {2} below them, {c} background",
    ),
}


def web_caption(draw: Draw, scene: Scene, concepts: Sequence[Concept]) -> str:
    """Return what a page of the web might say beside the scene: a name or some, or something else altogether."""
    named = draw.several([concept.name for concept in scene.concepts], len(scene.concepts))
    share = draw.share()
    if share < WRONG:
        return draw.one(concepts).name
    if share < 0.60:
        return named[0]
    if share < 0.80:
        return f"{named[0]} {draw.one(_WEB_WORDS)}"
    return " ".join(named)


def descriptions(draw: Draw, scene: Scene, number: int) -> tuple[str, ...]:
    """Return `number` different descriptions of a scene."""
    phrases = [concept.phrase for concept in scene.concepts]
    templates = draw.several(_DESCRIPTIONS[scene.kind], number)
    return tuple(template.format(*phrases, c=scene.colour) for template in templates)
