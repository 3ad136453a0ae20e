"""Flickr8k's and Flickr30k's layouts: captions with commas and quotes, list files; and what a user may get wrong."""

import csv
import gzip
import io
from collections import Counter

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import SHARED, assert_refused, data, flickr, image_file, open_for_evaluation, write

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
        ("a.jpg,b\n", "line 1: expected the header `image,caption` .*, found 'a.jpg,b'"),
        ("filepath,title,text\na.jpg,b,c\n", "line 1: expected the header .* one of each"),
        ("", "line 1: expected the header"),
        ("image,caption\na.jpg,one, two\n", "line 2: 3 columns, the header has 2; quote the caption"),
        ("image,caption\n../a.jpg,one\n/etc/b.jpg,two\n", r"line 2: '../a.jpg' is no file below .*all its 2 rows"),
    ],
)
def test_what_is_not_flickr(tmp_path, content, message):
    write(tmp_path / "captions.txt", content)
    assert_refused(f"captions.txt: {message}", tmp_path, "flickr")


def read(folder, name, content, **changes):
    """{key: captions}, and the rows that are left out, of a set with this captions file."""
    write(folder / name, content)
    (folder / "images").mkdir(exist_ok=True)
    source = open_source(data(folder, "flickr", **changes))
    return {sample.key: sample.captions for sample in source.samples}, source.rows


ODD = (
    '" Hello , says the man .',
    'A sign that reads " open "',
    '"Stop" says the sign "here"',
    '"all of it"',
    "one | bar, a comma",
    "a\ttab and \u2028 a line separator \x0b \x0c \x1c \x85 end",
    "a carriage \r return",
    "a NUL \0 byte",
    "\u0633\u0644\u0627\u0645 \u202e right to left",
    "'",
    "x",
    "long " * 2000 + "end",
)


@pytest.mark.parametrize("kind", ["bars", "token", "csv"])
def test_one_caption_stays_one_whatever_characters_it_holds(tmp_path, kind):
    """The bars of Flickr30k and the tokens of Flickr8k quote nothing; a CSV is written by Python's own writer."""
    if kind == "bars":
        text = "image_name| comment_number| comment\n" + "".join(f"{n}.jpg| 0| {one}\n" for n, one in enumerate(ODD))
    elif kind == "token":
        text = "".join(f"{n}.jpg#0\t{one}\n" for n, one in enumerate(ODD))
    else:
        file = io.StringIO()
        table = csv.writer(file, lineterminator="\n")
        table.writerows([("image", "caption"), *((f"{n}.jpg", one) for n, one in enumerate(ODD)), ("l.jpg", "a\nb,c")])
        text = file.getvalue()
    found, rows = read(tmp_path, {"bars": "results.csv", "token": "a.token", "csv": "captions.txt"}[kind], text)
    expected = {str(n): (one,) for n, one in enumerate(ODD)} | ({"l": ("a\nb,c",)} if kind == "csv" else {})
    assert found == expected
    assert (rows.read, rows.bad) == (len(expected), [])


def test_a_quotation_mark_that_is_not_closed_swallows_no_other_row(tmp_path):
    lines = ["a.jpg,plain", 'b.jpg,"Hello', "c.jpg,between", 'd.jpg,12"', 'e.jpg,"one, two', "f.jpg,last"]
    found, rows = read(tmp_path, "captions.txt", "\n".join(["image,caption", *lines]))
    assert found == {"a": ("plain",), "b": ('"Hello',), "c": ("between",), "d": ('12"',), "f": ("last",)}
    assert list(rows.named()) == [
        ("captions.txt: line 6", "3 columns, the header has 2; quote the caption: 'e.jpg,\"one, two'")
    ]


def test_a_row_that_lacks_its_bar_is_left_out_and_named(tmp_path):
    """As one row of the published results.csv does."""
    rows = [f"{n}.jpg| {k}| A dog {n} runs {k} ." for n in range(20) for k in range(5)]
    rows[99] = "19.jpg| 4   A dog runs across the grass ."
    found, counted = read(tmp_path, "results.csv", "\r\n".join(["image_name| comment_number| comment", *rows, ""]))
    assert (sum(map(len, found.values())), counted.read) == (99, 100)
    assert counted.bad == [(101, f"2 columns, the header has 3: {rows[99][:60]!r}")]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("filepath,title", "\t"),
        ("file_name,text", ","),
        ("image_name,comment_number,comment", ","),
        ("text,image", ","),
    ],
)
def test_other_columns_and_delimiters(tmp_path, header, delimiter):
    names = header.split(",")
    row = {"filepath": "a.jpg", "file_name": "a.jpg", "image_name": "a.jpg", "image": "a.jpg", "comment_number": "0"}
    lines = [delimiter.join(names), delimiter.join(row.get(name, "A dog runs .") for name in names)]
    found, _ = read(tmp_path, "table.csv", "\ufeff" + "\n".join(lines), annotations="table.csv")
    assert found == {"a": ("A dog runs .",)}


def test_old_line_ends_and_gzip(tmp_path):
    text = "image,caption\ra.jpg,one\rb.jpg,two\r"
    assert read(tmp_path, "captions.txt", text)[0] == {"a": ("one",), "b": ("two",)}
    (tmp_path / "captions.txt").unlink()
    assert read(tmp_path, "captions.txt.gz", gzip.compress(text.encode()))[0] == {"a": ("one",), "b": ("two",)}
    assert_refused(
        "captions.txt.gz: cannot be read", write(tmp_path / "captions.txt.gz", b"\x1f\x8bno").parent, "flickr"
    )


def test_text_that_is_not_utf8(tmp_path):
    write(tmp_path / "captions.txt", b"image,caption\na.jpg,\xff\n")
    assert_refused("captions.txt: line 2: not UTF-8", tmp_path, "flickr")
    flickr(tmp_path / "f")
    write(tmp_path / "f/train.txt", b"\xff")
    with pytest.raises(UserError, match=r"train.txt: not UTF-8 text"):
        split(open_source(data(tmp_path / "f", "flickr")).samples, {"refine": "train.txt"})


def test_coco_cn_joins_names_without_extension_by_the_folder_of_their_split(tmp_path):
    """Its captions of two splits of COCO, numbered from 0, and a list of ids."""
    names = [f"COCO_{('val2014', 'train2014')[n % 2]}_{n:012d}" for n in range(4)]
    for n, name in enumerate(names):
        write(tmp_path / "coco" / name.split("_")[1] / f"{name}.jpg", image_file(n))
    rows = [f"{name}#{k}\t一只狗 {k}" for name in names for k in range(1 + (name == names[1]))]
    write(tmp_path / "cn/imageid.human-written-caption.txt", "\n".join(rows) + "\n")
    write(tmp_path / "cn/coco-cn_test.txt", "".join(f"{name}\n" for name in names[:2]))
    opened = open_for_evaluation(
        tmp_path / "cn/imageid.human-written-caption.txt", "flickr", images="../coco", split="coco-cn_test.txt"
    )
    samples = list(opened.samples)
    assert [sample.key for sample in samples] == names[:2]
    assert [sample.captions for sample in samples] == [("一只狗 0",), ("一只狗 0", "一只狗 1")]
    assert [sample.image.read() for sample in samples] == [image_file(0), image_file(1)]


def test_an_image_that_rows_name_with_and_without_its_extension_keeps_all_its_captions(tmp_path):
    write(tmp_path / "images/1.jpg", image_file(1))
    write(tmp_path / "captions.token", "1.jpg#0\tOne .\n1#0\tTwo .\n1.jpg#1\tThree .\n")
    [sample] = open_source(data(tmp_path, "flickr")).samples
    assert sorted(sample.captions) == ["One .", "Three .", "Two ."]


def test_a_name_without_extension_is_one_file_or_refused(tmp_path):
    write(tmp_path / "images/a.png", image_file(0, "PNG"))
    write(tmp_path / "images/b", image_file(1))
    write(tmp_path / "x.token", "a#0\tone\nb#0\ttwo\nc#0\tthree\n")
    found = {sample.key: sample.image for sample in open_source(data(tmp_path, "flickr")).samples}
    assert found["a"].read() == image_file(0, "PNG")
    assert found["b"].read() == image_file(1)
    with pytest.raises(FileNotFoundError):
        found["c"].read()
    write(tmp_path / "images/a.jpg", image_file(0))
    assert_refused(r"data.images: .*images has a.jpg and a.png; which of them is a\?", tmp_path, "flickr")


@pytest.mark.parametrize("mark", ["/", ":", "_"])
def test_captions_with_part_of_speech_tags_are_refused_and_few_are_said(tmp_path, mark, caplog):
    """Flickr30k-CN's CSV; what only looks like tags in some words is no such caption."""
    tagged = f"一个{mark}m 男人{mark}n 在{mark}p 跑{mark}v"
    plain = ["一个男人在跑", "a man and/or a dog at 12:30 pm", "his/her", "one two/x three/y"]
    table = "".join(f"{n}.jpg,{text}\n" for n, text in enumerate([*plain, tagged]))
    found, _ = read(tmp_path, "captions.txt", "image,caption\n" + table)
    assert found["4"] == (tagged,)
    assert "1 of 5 captions carry part-of-speech tags" in caplog.text
    more = "".join(f"{n}.jpg,{tagged}\n" for n in range(5, 10))
    write(tmp_path / "captions.txt", "image,caption\n" + table + more)
    assert_refused("captions.txt: 6 of 10 captions carry part-of-speech tags, such as .*; take", tmp_path, "flickr")


def test_the_chinese_csv_is_read_as_it_is(tmp_path):
    found, rows = read(
        tmp_path,
        "flickr30k_test_zh.txt",
        "image,caption\n1.jpg,一个，男人\n1.jpg,两个\n",
        annotations="flickr30k_test_zh.txt",
    )
    assert found == {"1": ("一个，男人", "两个")}
    assert not rows.bad
