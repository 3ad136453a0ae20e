"""One image file: whole ones pass, and each way of being broken is named."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline_lib.core.images import open_rgb
from pipeline_lib.shard.images import compare, look_at
from tests.small_sets import image_file

LIMIT = 1_000_000


def image_fault(data: bytes, max_pixels: int) -> str | None:
    try:
        look_at(data, max_pixels)
    except ValueError as fault:
        return str(fault)
    return None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_images_pass(kind, mode):
    assert image_fault(image_file(1, kind, mode=mode), LIMIT) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cut_images_do_not(kind, share):
    data = image_file(1, kind, size=(64, 64))
    assert image_fault(data[: int(len(data) * share)], LIMIT)


def test_bytes_after_the_end_are_harmless():
    assert image_fault(image_file(1) + b"camera maker's notes", LIMIT) is None


def test_a_changed_byte_of_a_png_is_found_by_its_checksum():
    data = bytearray(image_file(1, "PNG"))
    data[data.index(b"IDAT") + 10] ^= 1
    assert "does not decode" in image_fault(bytes(data), LIMIT)


def test_what_is_no_image():
    assert image_fault(b"<html>not found</html>", LIMIT) == "not an image in a known format"
    assert image_fault(image_file(1, "PPM"), LIMIT) == "not an image in a known format"


@pytest.mark.parametrize(("guard", "said"), [(None, "4000 x 4000 pixels, more than"), (LIMIT, "more pixels than")])
def test_too_many_pixels_are_seen_without_decoding(guard, said, monkeypatch):
    """By our check, or first by Pillow's own guard, which a stage sets to the same limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    file = io.BytesIO()
    Image.new("1", (4000, 4000)).save(file, "PNG")
    assert image_fault(file.getvalue(), LIMIT) == f"{said} shard.max_image_pixels"


def test_samples_that_nobody_knows_the_meaning_of_are_a_fault():
    """They would reach the model white or black."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 700, np.float32)).save(file, "TIFF")
    assert "floats from 700 to 700; known is 0 to 1" in image_fault(file.getvalue(), LIMIT)


def page(text):
    image = Image.new("RGB", (224, 224), "white")
    for line in range(8):
        ImageDraw.Draw(image).text((8, 10 + 24 * line), text if line == 3 else "the quick brown fox", fill="black")
    return image


def sea(seed):
    """Nothing but waves of a few levels."""
    waves = np.random.default_rng(seed).integers(-4, 5, (64, 64, 3))
    return Image.fromarray((np.array([20, 60, 110]) + waves).astype(np.uint8))


def again(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return open_rgb(file.getvalue())


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (page("over the lazy dog"), again(page("over the lazy dog")), "same"),
        (page("over the lazy dog"), page("over the lazy dog").resize((112, 112)), "similar"),
        (page("over the lazy dog"), page("over the lazy hog"), "similar"),
        (page("a cat in a hat"), page("seven of them, and more"), "different"),
        (sea(1), sea(2), "different"),
        (Image.new("RGB", (24, 16), "red"), Image.new("RGB", (24, 16), "red"), "different"),
    ],
    ids=["JPEG", "smaller", "another letter", "another text", "low contrast", "no contrast"],
)
def test_only_another_encoding_is_the_same_picture(one, other, verdict):
    assert compare(one, other) == compare(other, one) == verdict
