"""Tars in a folder or by a list of hashes; and what a user may get wrong."""

from pipeline_lib.sources.formats import open_source
from tests.small_sets import assert_refused, data, img2dataset, write


def test_webdataset_folder(tmp_path):
    source = open_source(data(img2dataset(tmp_path), "webdataset"))
    assert [tar.path.name for tar in source.tars] == ["00000.tar", "00001.tar"]
    assert [s.key for s in source.samples][:4] == ["000000000", "000000001", "000000002", "000010000"]
    limited = open_source(data(tmp_path, "webdataset", limit=4, parts={"refine": 1.0}))
    assert [s.key for s in limited.samples] == [s.key for s in source.samples][:4]
    assert [tar.taken for tar in limited.tars] == [{"refine": 3}, {"refine": 1}]


def test_webdataset_by_a_list_of_hashes(tmp_path):
    img2dataset(tmp_path / "far")
    listing = write(tmp_path / "index.txt", f"{'A' * 64}  far/00001.tar\n{'b' * 64} *far/00000.tar\n")
    source = open_source(data(listing, "webdataset"))
    assert [(t.path, t.sha256) for t in source.tars] == [
        (tmp_path / "far/00001.tar", "a" * 64),
        (tmp_path / "far/00000.tar", "b" * 64),
    ]


def test_tars_that_are_missing(tmp_path):
    assert_refused(r"no \*.tar in", tmp_path, "webdataset")
    for name in ("00000.tar", "a" * 300, "\0"):
        listing = write(tmp_path / "i.txt", f"{'a' * 64}  {name}\n")
        assert_refused("i.txt: line 1: no such file: ", listing, "webdataset")
    assert_refused(r"line 1: expected `<sha256>  <file.tar>`", write(tmp_path / "i.txt", "00000.tar\n"), "webdataset")
