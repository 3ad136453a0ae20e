"""One image file: whole ones pass, and each way of being broken is named."""

import io

import pytest
from PIL import Image

from pipeline_lib.shard.images import image_fault
from tests.small_sets import image_file

LIMIT = 1_000_000


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
