"""Flickr8k's and Flickr30k's layouts: captions with commas and quotes, list files; and what a user may get wrong."""

from collections import Counter

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import SHARED, assert_refused, data, flickr, image_file, write

FLICKR8K = SHARED / "flickr8k"


def test_flickr_captions_hold_commas_and_quotes(tmp_path):
    source = open_source(data(flickr(tmp_path), "flickr"))
    samples = list(source.samples)
    assert [s.key for s in samples] == [f"{n}_ab" for n in range(6)]
    assert samples[3].captions == ("A plain caption of 3 .", 'Two men , looking , at "it" 3 .')
    assert samples[3].image.read() == image_file(3)
    parts = split(source.samples, {"refine": "train.txt", "val": "val.txt", "eval": 1.0})
    assert {name: [s.key for s in part] for name, part in parts.items()} == {
        "refine": ["0_ab", "1_ab", "2_ab", "3_ab"],
        "val": ["4_ab"],
        "eval": ["5_ab"],
    }


def test_flickr_token_file_with_rows_of_an_image_apart(tmp_path):
    flickr(tmp_path)
    (tmp_path / "captions.txt").unlink()
    rows = [f"{n}_ab.jpg#{turn}\tcaption, {turn} of {n}" for turn in range(5) for n in range(6)]
    write(tmp_path / "Flickr8k.token", "\n".join(rows) + "\n")
    samples = list(open_source(data(tmp_path, "flickr")).samples)
    assert [len(s.captions) for s in samples] == [5] * 6
    assert samples[2].captions[4] == "caption, 4 of 2"


def test_flickr30k_columns_separated_by_bars(tmp_path):
    write(tmp_path / "images/1.jpg", image_file(1))
    write(tmp_path / "results.csv", "image_name| comment_number| comment\n1.jpg| 0| One, two .\n1.jpg| 1| Three .\n")
    [sample] = open_source(data(tmp_path, "flickr")).samples
    assert sample.captions == ("One, two .", "Three .")


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the Flickr8k photos are not on this machine")
def test_flickr8k_itself():
    source = open_source(data(FLICKR8K, "flickr"))
    parts = split(source.samples, {"refine": "train.txt", "val": "val.txt"})
    assert {name: len(part) for name, part in parts.items()} == {"refine": 2000, "val": 500}
    assert Counter(len(s.captions) for s in source.samples) == {5: 2500}
    by_key = {s.key: s for s in source.samples}
    assert "Two men , standing on an ice , looking into something covered with a blue tarp ." in (
        by_key["103205630_682ca7285b"].captions
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg,b\n", "line 1: expected the header `image,caption`, found 'a.jpg,b'"),
        ("", "line 1: expected the header"),
        ("image,caption\na.jpg,one, two\n", "line 2: 3 columns, the header has 2; quote the caption"),
        ("a.jpg#0\tone\nsecond line\n", "line 2: expected `file#0<TAB>caption`"),
    ],
)
def test_what_is_not_flickr(tmp_path, content, message):
    write(tmp_path / "captions.txt", content)
    assert_refused(f"captions.txt: {message}", tmp_path, "flickr")


def test_text_that_is_not_utf8(tmp_path):
    write(tmp_path / "captions.txt", b"image,caption\na.jpg,\xff\n")
    assert_refused("captions.txt: not readable as captions", tmp_path, "flickr")
    flickr(tmp_path / "f")
    write(tmp_path / "f/train.txt", b"\xff")
    with pytest.raises(UserError, match=r"train.txt: not UTF-8 text"):
        split(open_source(data(tmp_path / "f", "flickr")).samples, {"refine": "train.txt"})
