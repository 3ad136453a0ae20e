"""Image files as pixels, before any model's own steps: samples deeper than eight bits, and what stands for the pixels.

Everything else is as open_clip has it, in model and report alike: a photo lies as it is stored (EXIF's orientation is
not applied), transparency is dropped, and of an animation the first frame counts.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0: BitsPerSample, PhotometricInterpretation


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image whose samples are deeper than eight bits as a viewer shows it, and any other as it is.

    Pillow converts such samples by cutting off what is above 255: a 16-bit image turns white. Unsigned integers of 16
    (or, in a TIFF, 12) bits are scaled from their whole range, floats from 0 to 1; nothing says the range of others.

    Raises:
        ValueError: The samples are integers of 32 bits or signed, floats beyond 0 to 1, or count down from white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    if image.mode == "I":
        raise ValueError("its samples are integers of 32 bits or signed, of which no range is known; save it in 8 bits")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ValueError("its samples have more than 8 bits and count down from white; save it in 8 bits")
    samples = np.asarray(image)
    if image.mode == "F":
        low, high = samples.min(), samples.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its samples are floats from {low:g} to {high:g}; known is 0 to 1: save it in 8 bits")
        return Image.fromarray(np.rint(samples * 255).astype(np.uint8))
    most = 2 ** tags.get(_BITS, (16,))[0] - 1
    return Image.fromarray(((samples.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8))


def open_rgb(data: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Return the whole image of a file (of one of these formats; None: of any) in RGB, eight bits a sample.

    Raises:
        ValueError: See `to_eight_bits`. A broken file raises nearly every other type.
    """
    with Image.open(io.BytesIO(data), formats=formats) as image:
        return to_eight_bits(image).convert("RGB")


def pixels_digest(rgb: Image.Image) -> bytes:
    """Return 16 bytes that stand for the size and pixels of an RGB image, however its file is encoded."""
    digest = hashlib.sha256(b"%d x %d" % rgb.size)  # faster than others where the processor has it
    digest.update(rgb.tobytes())
    return digest.digest()[:16]
