"""Pixels of image files: samples of more than eight bits as they are meant, or a reason why not."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.core.images import open_rgb, pixels_digest, to_eight_bits

RAMP = np.linspace(0, 1, 48).reshape(6, 8)
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(samples, kind, **options):
    return Image.open(io.BytesIO(encoded(Image.fromarray(samples), kind, **options)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_is_divided_by_257(kind, order):
    samples = np.array([[0, 128, 129, 257, 30000], [32767, 40000, 65407, 65278, 65535]], order)
    found = to_eight_bits(opened(samples.astype("<u2") if kind == "PNG" else samples, kind))
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), np.round(samples.astype(np.float64) / 257))


def test_12_bit_grey_in_a_tiff_is_scaled_from_12_bits():
    """Pillow writes none: four samples by hand, 12 bits each, and the header that says so."""
    samples = np.array([[0, 2048, 1, 4095]])
    packed = bytes.fromhex("".join(f"{value:03x}" for value in samples[0]))
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(packed)))
    directory = len(tags).to_bytes(2, "little")
    for tag, kind, value in tags:
        directory += b"".join(n.to_bytes(size, "little") for n, size in ((tag, 2), (kind, 2), (1, 4), (value, 4)))
    start = 8 + len(packed)
    data = b"II*\0" + start.to_bytes(4, "little") + packed + directory + bytes(4)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
        assert np.asarray(to_eight_bits(image)).tolist() == np.round(samples / 4095 * 255).tolist()


def test_floats_from_0_to_1_are_multiplied_by_255():
    found = to_eight_bits(opened(RAMP.astype(np.float32), "TIFF"))
    assert np.array_equal(np.asarray(found), np.round(RAMP.astype(np.float32) * 255))


@pytest.mark.parametrize(
    ("samples", "options", "said"),
    [
        (RAMP.astype(np.float32) * 255, {}, "floats from 0 to 255"),
        (RAMP.astype(np.float32) - 0.5, {}, "floats from -0.5 to 0.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), {}, "floats from nan to nan"),
        ((RAMP * 255).astype(np.int32), {}, "32 bits or signed"),
        ((RAMP * 65535).astype(np.uint16), {"tiffinfo": {PHOTOMETRIC: 0}}, "count down from white"),
    ],
)
def test_samples_of_no_known_range_are_refused(samples, options, said):
    with pytest.raises(ValueError, match=said):
        to_eight_bits(opened(samples, "TIFF", **options))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_all_else_is_left_as_it_is(mode):
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert(mode)
    assert to_eight_bits(image) is image


def test_the_digest_is_of_the_pixels_and_not_of_the_file():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    same = [encoded(image, "PNG"), encoded(image, "WEBP", lossless=True), encoded(image.convert("RGBA"), "PNG")]
    assert {pixels_digest(open_rgb(one)) for one in same} == {pixels_digest(image)}
    other = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.point(lambda value: value ^ 1)]
    flat = [Image.new("RGB", size) for size in ((2, 3), (3, 2), (6, 1))]
    assert len({pixels_digest(one) for one in [image, *other, *flat]}) == 6
