"""What a scene holds and where: one to three pictures on a plain background."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline_lib.sources.openmoji_concepts import Concept
from pipeline_lib.sources.openmoji_drawing import SIZE, DrawnImage, Placed

COLOURS: Mapping[str, str] = {
    "white": "#ffffff",
    "grey": "#bebebe",
    "pink": "#fabecd",
    "yellow": "#faeb96",
    "light blue": "#aad7f5",
    "light green": "#b4e6b4",
    "beige": "#ebdcc3",
    "dark grey": "#3c3c46",
}
_OTHER_COLOURS = ("#d7beeb", "#ffc896", "#a0e6dc")  # lavender, orange, turquoise: of no scene
_OTHER_SIZE = 56  # of no scene: between the small and the large pictures
Kind = Literal["large", "small", "beside", "above", "three"]
# Side of each picture's square, and the corners of the squares before they are moved about; in pixels.
_SQUARES: Mapping[Kind, tuple[int, Sequence[tuple[int, int]]]] = {
    "large": (72, [(12, 12)]),
    "small": (36, [(30, 30)]),
    "beside": (45, [(1, 25), (50, 25)]),
    "above": (45, [(25, 1), (25, 50)]),
    "three": (39, [(3, 7), (53, 10), (28, 53)]),
}
_MOVED: Mapping[Kind, tuple[int, int]] = {  # at most so far from there, across and down
    "large": (12, 12),
    "small": (30, 30),
    "beside": (1, 16),
    "above": (16, 1),
    "three": (2, 2),
}
_SHARES: Sequence[Kind] = ("large", "small", "beside", "beside", "above", "above", "three", "three")

T = TypeVar("T")


class Draw:
    """Random choices that are the same everywhere: of the generator only `random()` is used, which Python pins."""

    def __init__(self, name: str) -> None:
        """Start from a name: equal names give equal choices."""
        self._random = random.Random(name)  # noqa: S311

    def share(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()

    def below(self, n: int) -> int:
        """Return one of 0 to n - 1."""
        return int(self.share() * n)

    def one(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def several(self, options: Sequence[T], n: int) -> list[T]:
        """Return n different ones of the options, in a random order."""
        chosen: list[int] = []
        while len(chosen) < n:
            number = self.below(len(options))
            if number not in chosen:
                chosen.append(number)
        return [options[number] for number in chosen]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be seen; `concepts` from left to right or from top to bottom where there are two."""

    kind: Kind
    concepts: tuple[Concept, ...]
    colour: str  # of `COLOURS`
    pictures: tuple[Placed, ...]

    def image(self, font_digest: str) -> DrawnImage:
        """Return the reference by which it is drawn."""
        return DrawnImage(self.pictures, COLOURS[self.colour], font_digest)


def compose(draw: Draw, concepts: Sequence[Concept]) -> Scene:
    """Compose a scene of some of the concepts."""
    kind, colour = draw.one(_SHARES), draw.one(list(COLOURS))
    (size, corners), (across, down) = _SQUARES[kind], _MOVED[kind]
    chosen = draw.several(concepts, len(corners))
    pictures = []
    for concept, (x, y) in zip(chosen, corners, strict=True):
        moved = x + draw.below(2 * across + 1) - across, y + draw.below(2 * down + 1) - down
        pictures.append(Placed(concept.emoji, size, *(min(max(0, at), SIZE - size) for at in moved)))
    return Scene(kind, tuple(chosen), colour, tuple(pictures))


def alone(draw: Draw, concept: Concept, font_digest: str) -> DrawnImage:
    """Place one picture at a size and on a background that no scene has."""
    x, y = (draw.below(SIZE - _OTHER_SIZE + 1) for _ in range(2))
    return DrawnImage((Placed(concept.emoji, _OTHER_SIZE, x, y),), draw.one(_OTHER_COLOURS), font_digest)
