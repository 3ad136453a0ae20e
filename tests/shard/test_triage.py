"""Which samples are used: each fault is counted with its reason, and what is excluded is never read."""

import os

import pytest

from pipeline_lib.shard.records import Record
from pipeline_lib.shard.triage import Rules, triage
from pipeline_lib.sources.samples import FileImage, Sample
from tests import small_sets
from tests.small_sets import image_file, write


@pytest.fixture
def rules(tmp_path):
    return Rules(work=tmp_path / "work", settings=small_sets.settings(), captioned=True, tasks={})


@pytest.fixture
def record():
    return Record("refine/00000", "refine", "00000.tar", "00000.jsonl")


def sample(tmp_path, n, content=None, captions=("a caption",), **more):
    path = write(tmp_path / f"images/{n}.jpg", image_file(n) if content is None else content)
    return Sample(f"k.{n}", FileImage(str(path)), "jpg", captions, **more)


def test_each_fault_is_quarantined_with_its_reason(tmp_path, rules, record):
    samples = [
        sample(tmp_path, 0),
        Sample("gone", FileImage(str(tmp_path / "gone.jpg")), "jpg", ("x",)),
        Sample("folder", FileImage(str(tmp_path)), "jpg", ("x",)),
        sample(tmp_path, 1, content=b""),
        sample(tmp_path, 2, content=b"text"),
        sample(tmp_path, 3, content=image_file(3)[:-40]),
        sample(tmp_path, 4, content=b"\0" * 1_000_001),
        sample(tmp_path, 5, captions=()),
        sample(tmp_path, 6, captions=(), empty_captions=2),
        sample(tmp_path, 7, captions=("x" * 201,)),
        sample(tmp_path, 8, captions=("x",) * 1001),
        Sample("pipe", FileImage(str(tmp_path / "pipe")), "jpg", ("x",)),
        Sample("device", FileImage("/dev/zero"), "jpg", ("x",)),
        Sample("half", FileImage("half \ud83d pair.jpg"), "jpg", ("x",)),
        Sample("nul", FileImage("a\0.jpg"), "jpg", ("x",)),
        Sample("long", FileImage("a" * 300), "jpg", ("x",)),
    ]
    os.mkfifo(tmp_path / "pipe")
    found = [triage(each, record, rules, {}) for each in samples]
    assert [each and each.data for each in found] == [image_file(0), *[None] * 15]
    assert record.dropped_captions == 2
    reasons = dict(record.quarantined)
    assert len(reasons) == len(samples) - 1
    assert reasons["gone"] == f"no such file: {tmp_path}/gone.jpg"
    assert reasons["folder"].startswith("cannot be read (Is a directory)")
    assert reasons["k.1"] == "an empty file"
    assert reasons["k.2"] == "not an image in a known format"
    assert "truncated" in reasons["k.3"]
    assert reasons["k.4"] == "1000001 bytes, more than shard.max_image_bytes"
    assert reasons["k.5"] == "no caption"
    assert reasons["k.6"] == "only empty captions"
    assert reasons["k.7"] == "a caption is longer than shard.max_caption_chars"
    assert reasons["k.8"] == "1001 captions, more than 1000"
    assert reasons["pipe"] == f"cannot be read (not a regular file): {tmp_path}/pipe"
    assert reasons["device"] == "cannot be read (not a regular file): /dev/zero"
    assert reasons["half"] == "no such file: half \\ud83d pair.jpg"
    assert reasons["nul"] == "no such file: a\0.jpg"
    assert reasons["long"].startswith("cannot be read (File name too long): aaa")


def test_what_is_excluded_from_the_part_is_not_read(tmp_path, rules, record):
    gone = Sample("gone", FileImage(str(tmp_path / "gone.jpg")), "jpg", ("x",))
    assert triage(gone, record, rules, {("refine", "gone"): "why"}) is None
    assert (record.excluded, record.quarantined) == ([("gone", "why")], [])
    assert triage(sample(tmp_path, 0), record, rules, {("val", "k.0"): "of another part"}).data == image_file(0)
    assert record.read == 1  # samples that are used are counted by `Record.add`
