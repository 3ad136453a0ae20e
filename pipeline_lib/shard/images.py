"""Check one image file: its header, its number of pixels and its end.

That every pixel decodes is left to the stage that decodes; only a file that does not end as its format does is decoded
as a whole here.
"""

from __future__ import annotations

import io

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def image_fault(data: bytes, max_pixels: int) -> str | None:
    """Return why `data` is no acceptable image file, or None if it is one.

    The header must open and hold at most `max_pixels`, checksums (PNG) must fit, and the file must end as its format
    does; one that does not is decoded as a whole, since harmless bytes may follow the end.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return f"{width} x {height} pixels, more than shard.max_image_pixels"
            kind = image.format or ""
            image.verify()
        if not _ends_well(data, kind):
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
    except Image.DecompressionBombError:
        return "more pixels than shard.max_image_pixels"
    except Image.UnidentifiedImageError:
        return "not an image in a known format"
    except Exception as error:  # decoders meet broken files with almost any exception
        return f"does not decode ({error})"
    return None


def image_format(data: bytes) -> str:
    """Return the format of an image file as a lower-case extension, such as `jpeg`."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return (image.format or "").lower()


def _ends_well(data: bytes, kind: str) -> bool:
    if kind == "WEBP":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return kind in _LAST_BYTES and data.endswith(_LAST_BYTES[kind])
