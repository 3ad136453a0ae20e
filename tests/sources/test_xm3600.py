"""XM3600: the captions of one language, all of them, joined to their image by its key."""

import json

import pytest

from pipeline_lib.core.errors import UserError
from tests.small_sets import image_file, open_for_evaluation, write, xm3600


def test_all_captions_of_the_language(tmp_path):
    source = open_for_evaluation(xm3600(tmp_path / "set"), "xm3600", language="de")
    samples = list(source.samples)
    assert [len(sample.captions) for sample in samples] == [1, 2, 3, 1, 2, 3]
    assert samples[4].captions == ("Satz 0 zu 4", "Satz 1 zu 4")
    assert samples[4].key == f"{4:016x}"
    assert samples[4].image.read() == image_file(4)
    assert source.facts == {"format": "xm3600", "language": "de", "captions": "all of each image"}
    english = open_for_evaluation(tmp_path / "set", "xm3600", language="en")
    assert next(iter(english.samples)).captions == ("one of 0", "two of 0")


@pytest.mark.parametrize(("language", "given"), [(None, "null"), ("fr", "`fr`")])
def test_a_language_must_be_one_of_the_file(tmp_path, language, given):
    xm3600(tmp_path / "set")
    with pytest.raises(
        UserError, match=rf"^data.evaluation.s.language: {given} is none of de, en of .*captions.jsonl$"
    ):
        open_for_evaluation(tmp_path / "set", "xm3600", language=language)


def test_images_without_the_language_are_left_out_and_named(tmp_path):
    path = xm3600(tmp_path / "set") / "captions.jsonl"
    more = [{"image/key": "a", "en": {"caption": ["x"]}}, {"image/key": 3, "de": {"caption": ["x"]}}, []]
    write(path, path.read_text() + "".join(json.dumps(one) + "\n" for one in more))
    source = open_for_evaluation(tmp_path / "set", "xm3600", language="de")
    assert len(list(source.samples)) == 6
    assert [reason[:8] for _, reason in source.rows.bad] == ["no capti", "expected", "expected"]
