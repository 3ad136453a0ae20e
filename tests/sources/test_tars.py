"""Tars of others: webdataset's own grouping, nothing hostile touched, offsets that give the exact bytes."""

import io
import json
import pickle
import tarfile
from contextlib import suppress

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import tars
from pipeline_lib.sources.parts import Cut, Splitter
from pipeline_lib.sources.samples import Task
from tests.small_sets import image_file, img2dataset, tar


@settings(deadline=None)
@given(st.text(st.sampled_from("ab./_-"), max_size=12))
def test_the_key_rule_is_that_of_webdataset(name):
    prefix, suffix = base_plus_ext(name)
    assert tars.split_member(name) == (None if prefix is None else (prefix, suffix.lower()))


def test_what_img2dataset_writes(tmp_path):
    path = img2dataset(tmp_path) / "00001.tar"
    listing = tars.list_tar(path)
    assert [s.key for s in listing.samples] == ["000010000", "000010001", "000010002"]
    assert listing.samples[2].captions == ("image 2 of shard 1",)  # once, though txt and json both hold it
    for n, sample in enumerate(listing.samples):
        assert sample.image.read() == image_file(10 + n)
        assert path.read_bytes()[sample.image.offset :][: sample.image.size] == image_file(10 + n)
    assert (listing.rejected, listing.ignored) == ([], {})


def test_webdataset_reads_the_same_samples(tmp_path):
    path = img2dataset(tmp_path) / "00000.tar"
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(s["__key__"], s["jpg"]) for s in theirs] == [(s.key, s.image.read()) for s in tars.list_tar(path).samples]


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        ({"txt": "one\ntwo\n"}, ("one", "two")),
        ({"txt": "\r\none \u2028 \x0b\x0c\x1c\x85 \r one\r\ntwo"}, ("one \u2028 \x0b\x0c\x1c\x85 \r one", "two")),
        ({"txt": "one\nand on", "json": '{"caption": "one\\nand on "}'}, ("one\nand on",)),
        ({"json": '{"captions": ["one", " two "]}', "txt": "other"}, ("one", "two")),
        ({"json": '["one", "two"]'}, ("one", "two")),
        ({"json": '{"caption": "one"}'}, ("one",)),
        ({"json": '{"caption": "other"}', "txt": "one"}, ("one",)),
        ({}, ()),
        ({"txt": "  "}, ()),
    ],
)
def test_captions_of_a_tar(tmp_path, texts, captions):
    members = {"a.jpg": image_file(0), **{f"a.{extension}": text for extension, text in texts.items()}}
    [sample] = tars.list_tar(tar(tmp_path / "t.tar", members)).samples
    assert sample.captions == captions


def test_hostile_members_are_counted_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("c.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a.jpg"
    device = tarfile.TarInfo("d.jpg")
    device.type = tarfile.CHRTYPE
    folder = tarfile.TarInfo("a.folder")
    folder.type = tarfile.DIRTYPE
    members = [
        ("/abs.jpg", image_file(1)),
        ("../up.jpg", image_file(2)),
        ("x/../../up.txt", b"text"),
        ("a.jpg", image_file(3)),
        ("a.txt", b"a caption"),
        ("a.pyd", pickle.dumps(Bomb())),
        ("a.pth", pickle.dumps(Bomb())),
        ("a.cls.pkl", pickle.dumps(Bomb())),
        (link, b""),
        (hard, b""),
        (device, b""),
        (folder, b""),
        ("README", b"text"),
        ("._a.jpg", b"of a Mac"),
        ("big.json", b"[" * (tars.MAX_TEXT_BYTES + 1)),
        ("e.exe", b"MZ"),
    ]
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    listing = tars.list_tar(path)
    assert [(s.key, s.captions, s.image.read()) for s in listing.samples] == [("a", ("a caption",), image_file(3))]
    assert listing.ignored == {
        "unsafe path": 3,
        "pickle": 3,
        "link or device": 3,
        "oversized": 1,
        "not read: .exe": 1,
        "not read: .jpg": 1,
        "not read: no usual ending": 1,
    }
    assert listing.rejected == [("e", "no image in the tar (its members end in .exe)")]


@pytest.mark.parametrize("name", ["a.v1.jpg", "photo.2020.JPEG"])
def test_a_dot_in_a_name_ends_the_key_and_is_told(tmp_path, name):
    [(_, reason)] = tars.list_tar(tar(tmp_path / "t.tar", {name: image_file(0)})).rejected
    assert reason.endswith("; a key ends at the first dot of the name, so write another sign for it)")


def test_a_second_image_of_a_sample_is_counted(tmp_path):
    listing = tars.list_tar(tar(tmp_path / "t.tar", {"a.jpg": image_file(0), "a.png": image_file(1, "PNG")}))
    assert [s.image.member for s in listing.samples] == ["a.jpg"]
    assert listing.ignored == {"second image of a sample": 1}


def test_a_tar_that_is_not_sorted_by_key_is_refused(tmp_path):
    members = {f"{n}.{kind}": "x" for kind in ("jpg", "txt") for n in range(3)}
    with pytest.raises(UserError, match=r"member 0.txt stands apart from others of its sample; .*tar --sort=name"):
        tars.list_tar(tar(tmp_path / "t.tar", members))
    with pytest.raises(UserError, match=r"member a.jpg stands twice"):
        tars.list_tar(tar(tmp_path / "u.tar", [(tarfile.TarInfo(f"{key}.jpg"), b"x") for key in "aba"]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xff\xfe", "unreadable text"),
        ("a.json", b"{", "unreadable text"),
        ("a.json", b"[" * 100_000, "unreadable text"),  # nested beyond what a parser bears
        ("a.json", b"3", "neither an object nor a list"),
        ("a.cls", b"cat", "cls is 'cat', not the number of one class"),
        ("a.cls", b"0 1", "cls is '0 1', not the number of one class"),
        ("a.cls", b"[0, 1]", "cls is '[0, 1]', not the number of one class"),
        ("a.cls", b"1_0", "cls is '1_0', not the number of one class"),
        ("a.cls", b"\xff", "unreadable text"),
    ],
)
def test_unreadable_texts_reject_the_sample(tmp_path, name, content, reason):
    path = tar(tmp_path / "t.tar", {"a.jpg": image_file(0), name: content, "b.jpg": image_file(1)})
    listing = tars.list_tar(path, {"class": Task(("x", "y"))})
    assert [s.key for s in listing.samples] == ["b"]
    [(key, why)] = listing.rejected
    assert key == "a"
    assert reason in why


def test_a_class_out_of_range_is_refused(tmp_path):
    path = tar(tmp_path / "t.tar", {"a.jpg": image_file(0), "a.cls": "2"})
    with pytest.raises(UserError, match=r"t.tar: a.cls is 2, but there are 2 class names"):
        tars.list_tar(path, {"class": Task(("x", "y"))})


def test_a_doubled_member_is_refused(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match=r"member a.jpg stands twice"):
        tars.list_tar(path)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_damaged_headers_end_in_a_listing_or_a_sentence(tmp_path_factory, changes, pax):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as written:
        for name in ("\u00e9\U0001f600" * 30 + ".jpg", "b.txt", "c" * 255 + ".json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            written.addfile(info, io.BytesIO(b"{}"))
    content = bytearray(file.getvalue())
    for place, value in changes:
        content[place * 3 % len(content)] = value
    path = tmp_path_factory.mktemp("damaged") / "t.tar"
    path.write_bytes(content)
    with suppress(UserError):
        tars.list_tar(path)


@pytest.mark.parametrize("kind", ["gz", "text", "cut", "cut in a text", "missing"])
def test_what_is_no_whole_plain_tar_is_refused(tmp_path, kind):
    path = img2dataset(tmp_path) / "00000.tar"
    if kind == "gz":
        with tarfile.open(path, "w:gz") as file:
            file.addfile(tarfile.TarInfo("a.jpg"))
    elif kind == "text":
        path.write_text("not a tar " * 100)
    elif kind == "cut in a text":
        with tarfile.open(path) as file:
            last = file.getmembers()[-1]
        path.write_bytes(path.read_bytes()[: last.offset_data + 3])
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(UserError, match=str(path)):
        tars.list_tar(path)


def test_a_tar_whose_writer_was_killed_is_told(tmp_path):
    path = img2dataset(tmp_path) / "00000.tar"
    with tarfile.open(path) as file:
        last = file.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    listing = tars.list_tar(path)
    assert len(listing.samples) == 3
    assert listing.ignored == {"missing end of the archive": 1}


def test_a_cut_lists_the_first_samples(tmp_path):
    cut = Cut.begin(Splitter({"refine": 1.0}, tmp_path), 2)
    listing = tars.list_tar(img2dataset(tmp_path) / "00000.tar", cut=cut)
    assert [s.key for s in listing.samples] == ["000000000", "000000001"]
    assert cut.is_full


def test_json_numbers_as_captions_are_dropped_and_counted(tmp_path):
    path = tar(tmp_path / "t.tar", {"a.jpg": image_file(0), "a.json": json.dumps({"captions": ["x", 3, None]})})
    [sample] = tars.list_tar(path).samples
    assert (sample.captions, sample.empty_captions) == (("x",), 2)
