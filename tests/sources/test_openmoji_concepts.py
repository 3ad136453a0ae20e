"""What the pictures are called: every picture and every name once, in the words of a person, the others counted."""

import hashlib
import json

import pytest

from pipeline_lib.sources.openmoji_concepts import CATEGORIES, find_concepts, say, with_articles
from pipeline_lib.sources.openmoji_drawing import draw
from pipeline_lib.sources.openmoji_packages import path_of

KEPT, REJECTED = find_concepts()


def test_every_picture_is_a_concept_or_left_out_with_a_reason():
    rows = [row for row in json.loads(path_of("names").read_text()) if row["category"] != "Component"]
    assert len(KEPT) + len(REJECTED) == len(rows)
    assert len(KEPT) > 1000
    assert {concept.category for concept in KEPT} == {*CATEGORIES.values()}
    reasons = {" ".join(reason.split()[:3]) for _, reason in REJECTED}
    assert reasons == {"no name by", "the same picture", "the same name"}


def test_no_picture_no_key_and_no_name_occurs_twice():
    for trait in ("key", "name", "phrase", "emoji"):
        assert len({getattr(concept, trait) for concept in KEPT}) == len(KEPT)
    assert len({hashlib.sha256(draw(concept.emoji).tobytes()).digest() for concept in KEPT}) == len(KEPT)


@pytest.mark.parametrize(
    ("unicode_name", "said"),
    [
        ("RED APPLE", "a red apple"),
        ("UMBRELLA", "an umbrella"),
        ("UNICORN FACE", "a unicorn face"),
        ("HOURGLASS", "an hourglass"),
        ("EUROPEAN CASTLE", "a european castle"),
        ("ONE-PIECE SWIMSUIT", "a one-piece swimsuit"),
        ("GRAPES", "grapes"),
        ("BUS", "a bus"),
        ("WINE GLASS", "a wine glass"),
        ("RHINOCEROS", "a rhinoceros"),
        ("BREAD", "bread"),
        ("MEAT ON BONE", "meat on a bone"),
        ("BLACK SCISSORS", "scissors"),
        ("MAN WITH WHITE CANE", "a man with a white cane"),
        ("man: red hair", "a man with red hair"),
        ("woman: bald", "a bald woman"),
        ("MEN WRESTLING", "men wrestling"),
        ("FULL MOON SYMBOL", "a full moon"),
        ("STATUE OF LIBERTY", "the statue of liberty"),
        ("SLICE OF PIZZA", "a slice of pizza"),
        ("RESCUE WORKER’S HELMET", "a rescue worker's helmet"),
    ],
)
def test_names_are_said_as_a_person_would(unicode_name, said):
    assert say(unicode_name) == said


def test_an_article_stands_once():
    for concept in KEPT:
        assert with_articles(concept.phrase) == concept.phrase
        assert concept.phrase.removesuffix(concept.name) in ("", "a ", "an ", "the "), concept
        assert concept.phrase == concept.phrase.lower().strip()
