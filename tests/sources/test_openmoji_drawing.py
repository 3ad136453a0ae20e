"""OpenMoji's images are what a text layout engine draws, byte for byte the same in every process."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont, features

from pipeline_lib.sources import openmoji_drawing
from pipeline_lib.sources.openmoji_concepts import find_concepts
from pipeline_lib.sources.openmoji_drawing import SIZE, DrawnImage, Placed, draw
from pipeline_lib.sources.openmoji_packages import path_of

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow finds no FriBiDi here, so Raqm cannot lay out text")
def test_images_equal_those_of_a_text_layout_engine():
    font, _ = openmoji_drawing._font(SIZE)
    reference = ImageFont.truetype(path_of("pictures"), font.size, layout_engine=ImageFont.Layout.RAQM)
    sequences = [c for c in find_concepts()[0] if len(c.emoji) > 1]
    assert len(sequences) > 200
    for concept in sequences[::7]:
        image = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(image).text((0, 0), concept.emoji, font=reference, embedded_color=True)
        assert image.tobytes() == draw(concept.emoji).tobytes(), concept.key


def test_another_process_renders_the_same_bytes():
    code = (
        "import sys; from pipeline_lib.sources.openmoji_drawing import DrawnImage, Placed\n"
        "sys.stdout.buffer.write(DrawnImage((Placed('\\U0001f600', 50, 3, 4),), 'pink', '').read())"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    assert output == DrawnImage((Placed("\U0001f600", 50, 3, 4),), "pink", "").read()
    assert output.startswith(b"\x89PNG")
