"""Check one image file by decoding it, and keep what tells its picture from others, however it is encoded.

Two images are compared in three steps, each over fewer: by a digest of their pixels (equal: the same picture), by an
outline of 128 bits (few bits apart: worth a look), and by the pictures themselves (`compare`).
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pipeline_lib.core.images import open_rgb, pixels_digest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
OUTLINE_BITS = (8, 16)  # rows and columns of the grid whose steps the outline holds
STEP = 4  # grey levels (of 256) that count as a step: less is what a JPEG makes of a plain ground
THUMBNAIL = 16  # cells a side that are compared in colour
# Photos and small texts, encoded anew (JPEG from quality 40, WebP, GIF) or made smaller, were measured against photos
# that overlap them and texts with another letter. No cell moved by more than 22 levels (others: from 90), no square of
# 2 x 2 pixels by more than 32 (one letter: from 96), all together by under 0.09 of their spread (others: from 0.24).
MOST_CELL, MOST_SQUARE, MOST_SPREAD = 24, 48, 0.1


class Look(NamedTuple):
    """What tells the picture of an image from others."""

    pixels: bytes  # 16, see `pixels_digest`
    outline: bytes  # 16, see `outline`


def look_at(data: bytes, max_pixels: int) -> Look:
    """Return the look of the image file `data`.

    The header must open and hold at most `max_pixels`, checksums (PNG) must fit, and the whole file must decode to
    pixels of a known meaning; harmless bytes may follow its end.

    Raises:
        ValueError: Why it is no acceptable image file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.verify()
        if width * height <= max_pixels:
            rgb = open_rgb(data, FORMATS)
            return Look(pixels_digest(rgb), outline(rgb))
    except Image.DecompressionBombError:
        raise ValueError("more pixels than shard.max_image_pixels") from None
    except Image.UnidentifiedImageError:
        raise ValueError("not an image in a known format") from None
    except Exception as error:  # decoders meet broken files with almost any exception
        raise ValueError(f"does not decode ({error})") from error
    raise ValueError(f"{width} x {height} pixels, more than shard.max_image_pixels")


def image_format(data: bytes) -> str:
    """Return the format of an image file as a lower-case extension, such as `jpeg`."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return (image.format or "").lower()


def outline(rgb: Image.Image) -> bytes:
    """Return 128 bits: for each cell of a coarse grid, whether the next one to the right is brighter by a step.

    A difference hash; encodings and sizes of one picture differ in few bits (measured: up to 8).
    """
    rows, columns = OUTLINE_BITS
    grey = np.asarray(rgb.convert("L").resize((columns + 1, rows), Image.Resampling.BOX)).astype(int)
    return np.packbits(np.diff(grey, axis=1) >= STEP).tobytes()


def compare(one: Image.Image, other: Image.Image) -> Literal["same", "similar", "different"]:
    """Say whether two RGB images are the same picture encoded anew, similar (a smaller copy, say), or different.

    Both have the same colours all over at the size of a thumbnail. The same picture also has the same size, and the
    same grey in every square of 2 x 2 pixels: one letter more is another picture. Differences are measured against the
    picture's own spread too, so that two views of the sea stay two, and of plain ones nothing is said.
    """
    cells = (THUMBNAIL, THUMBNAIL)
    if not _agree(*(each.resize(cells, Image.Resampling.BOX) for each in (one, other)), most=MOST_CELL):
        return "different"
    if one.size != other.size:
        return "similar"
    squares = (each.convert("L").reduce(2) for each in (one, other))
    return "same" if _agree(*squares, most=MOST_SQUARE) else "similar"


def _agree(one: Image.Image, other: Image.Image, *, most: int) -> bool:
    """Return whether two images of one size differ nowhere by more than `most`, and little beside their own spread."""
    samples = np.asarray(one).astype(np.float32)
    apart = samples - np.asarray(other)
    spread = samples.std(axis=(0, 1)).mean()
    return bool(np.abs(apart).max() <= most and np.sqrt((apart**2).mean()) < MOST_SPREAD * spread)
