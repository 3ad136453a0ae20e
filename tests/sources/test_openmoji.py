"""OpenMoji: no two images alike, and no caption holds a word that zero-shot asks for."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from pipeline_lib.core import config
from pipeline_lib.sources import openmoji
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.openmoji_drawing import draw
from pipeline_lib.sources.openmoji_packages import path_of
from pipeline_lib.sources.parts import split
from pipeline_lib.sources.settings import DataSettings
from tests.small_sets import data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def concepts():
    return openmoji.find_concepts()


def test_there_are_over_1800_concepts_of_9_categories_and_each_is_counted(concepts):
    kept, rejected = concepts
    assert len(kept) >= 1800
    assert len({c.category for c in kept}) == 9
    rows = [row for row in json.loads(path_of("names").read_text()) if row["category"] != "Component"]
    assert len(kept) + len(rejected) == len(rows)
    assert {re.sub(r" as .*", "", reason) for _, reason in rejected} == {
        "the same picture",
        "its names hold only words of class names",
    }


def test_no_image_and_no_key_occurs_twice(concepts):
    kept, _ = concepts
    assert len({c.key for c in kept}) == len(kept)
    assert len({hashlib.sha256(draw(c.emoji).tobytes()).digest() for c in kept}) == len(kept)


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


def test_openmoji_as_the_default_splits_it():
    params = config.load(ROOT / "params.yaml", DataSettings)
    source = open_source(data(ROOT / params.root, "openmoji"))
    parts = split(source.samples, params.parts)
    assert sum(map(len, parts.values())) >= 1800
    assert len(parts["eval"]) >= 370
    sample = parts["eval"][0]
    assert sample.image.read().startswith(b"\x89PNG")
    assert source.tasks["category"].classnames[sample.labels["category"]] in source.tasks["category"].classnames
    assert len(source.tasks["category"].classnames) == 9
    assert "CC BY-SA" in source.facts["license"]
