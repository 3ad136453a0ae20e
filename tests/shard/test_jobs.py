"""One shard: what is quarantined and why, keys that survive webdataset's rule, writes that leave nothing behind."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import read_index
from pipeline_lib.shard import jobs as shard_jobs
from pipeline_lib.sources.samples import FileImage, Sample, Task
from pipeline_lib.sources.tars import split_member
from tests import small_sets
from tests.small_sets import picture, write

LIMIT = 1_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_images_pass(kind, mode):
    assert shard_jobs.image_fault(picture(1, kind, mode=mode), LIMIT) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cut_images_do_not(kind, share):
    data = picture(1, kind, size=(64, 64))
    assert shard_jobs.image_fault(data[: int(len(data) * share)], LIMIT)


def test_bytes_after_the_end_are_harmless():
    assert shard_jobs.image_fault(picture(1) + b"camera maker's notes", LIMIT) is None


def test_a_changed_byte_of_a_png_is_found_by_its_checksum():
    data = bytearray(picture(1, "PNG"))
    data[data.index(b"IDAT") + 10] ^= 1
    assert "does not decode" in shard_jobs.image_fault(bytes(data), LIMIT)


def test_what_is_no_image():
    assert shard_jobs.image_fault(b"<html>not found</html>", LIMIT) == "not an image in a known format"
    assert shard_jobs.image_fault(picture(1, "PPM"), LIMIT) == "not an image in a known format"


def test_too_many_pixels_are_seen_without_decoding():
    file = io.BytesIO()
    Image.new("1", (4000, 4000)).save(file, "PNG")
    assert shard_jobs.image_fault(file.getvalue(), LIMIT) == "4000 x 4000 pixels, more than shard.max_image_pixels"


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), unique=True, max_size=20))
def test_escaped_keys_stay_apart_and_whole(keys):
    keys = [key for key in keys if key]
    escaped = [shard_jobs.escape_key(key) for key in keys]
    assert len(set(escaped)) == len(keys)
    for name in escaped:
        assert split_member(f"{name}.jpg") == (name, "jpg")
        assert len(tarfile.TarInfo(f"{name}.jpeg").tobuf(tarfile.USTAR_FORMAT)) == 512


def job(tmp_path, samples, **changes):
    rules = shard_jobs.Rules(
        work=tmp_path / "work",
        settings=small_sets.settings(),
        captioned=True,
        tasks=changes.pop("tasks", {}),
    )
    return shard_jobs.FileJob(name="refine/00000", rules=rules, part="refine", samples=tuple(samples), **changes)


def sample(tmp_path, n, content=None, captions=("a caption",), **more):
    path = write(tmp_path / f"images/{n}.jpg", picture(n) if content is None else content)
    return Sample(f"k.{n}", FileImage(str(path)), "jpg", captions, **more)


def test_a_shard_holds_the_bytes_of_the_files_at_the_offsets_of_the_index(tmp_path):
    samples = [sample(tmp_path, n, labels={"class": n % 2}) for n in range(5)]
    [record] = shard_jobs.run_job(job(tmp_path, samples, tasks={"class": Task(("x", "y"))})).records
    tar = (tmp_path / "work/output/refine/00000.tar").read_bytes()
    entries = list(read_index(tmp_path / "work/output/refine/00000.jsonl"))
    assert [tar[e.offset : e.offset + e.size] for e in entries] == [picture(n) for n in range(5)]
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        members = file.getmembers()
        assert [m.name for m in members][:3] == ["k%2E0.jpg", "k%2E0.cls", "k%2E0.json"]
        assert [(m.offset_data, m.size) for m in members if m.name.endswith("jpg")] == [
            (e.offset, e.size) for e in entries
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "clip", "clip", 0o444)
        }
        assert file.extractfile("k%2E1.json").read() == (b'{"captions":["a caption"],"key":"k.1","labels":{"class":1}}')
        assert file.extractfile("k%2E1.cls").read() == b"1"
    assert (record.num_samples, record.num_captions, record.num_bytes) == (5, 5, len(tar))
    assert record.sha256 == shard_jobs.artifacts.sha256_bytes(tar)


def test_each_fault_is_quarantined_with_its_reason(tmp_path):
    gone = Sample("gone", FileImage(str(tmp_path / "gone.jpg")), "jpg", ("x",))
    folder = Sample("folder", FileImage(str(tmp_path)), "jpg", ("x",))
    samples = [
        sample(tmp_path, 0),
        gone,
        folder,
        sample(tmp_path, 1, content=b""),
        sample(tmp_path, 2, content=b"text"),
        sample(tmp_path, 3, content=picture(3)[:-40]),
        sample(tmp_path, 4, content=b"\0" * 1_000_001),
        sample(tmp_path, 5, captions=()),
        sample(tmp_path, 6, captions=(), empty_captions=2),
        sample(tmp_path, 7, captions=("x" * 201,)),
    ]
    [record] = shard_jobs.run_job(job(tmp_path, samples)).records
    assert record.num_samples == 1
    assert record.read == len(samples)
    assert record.dropped_captions == 2
    reasons = dict(record.quarantined)
    assert reasons["gone"] == f"no such file: {tmp_path}/gone.jpg"
    assert reasons["folder"].startswith("cannot be read (Is a directory)")
    assert reasons["k.1"] == "an empty file"
    assert reasons["k.2"] == "not an image in a known format"
    assert "truncated" in reasons["k.3"]
    assert reasons["k.4"] == "1000001 bytes, more than shard.max_image_bytes"
    assert reasons["k.5"] == "no caption"
    assert reasons["k.6"] == "only empty captions"
    assert reasons["k.7"] == "a caption is longer than shard.max_caption_chars"


def test_a_finished_shard_is_kept_and_a_changed_one_is_not(tmp_path):
    path = tmp_path / "work/output/refine/00000.tar"
    todo = job(tmp_path, [sample(tmp_path, n) for n in range(3)])
    first = shard_jobs.run_job(todo)
    content, inode = path.read_bytes(), path.stat().st_ino
    again = shard_jobs.run_job(todo)
    assert again.resumed
    assert again.records == first.records
    assert path.stat().st_ino == inode
    path.write_bytes(content[:600] + b"\xff" + content[601:])  # same size: only the hash can tell
    assert not shard_jobs.run_job(todo).resumed
    assert path.read_bytes() == content
    write(tmp_path / "images/1.jpg", picture(99))  # a source changed
    assert not shard_jobs.run_job(todo).resumed
    assert picture(99) in path.read_bytes()
    todo = job(tmp_path, [sample(tmp_path, n, captions=("new",)) for n in range(3)])
    assert not shard_jobs.run_job(todo).resumed


def test_an_image_without_a_usual_extension_gets_that_of_its_format(tmp_path):
    path = write(tmp_path / "images/noext", picture(1, "PNG"))
    shard_jobs.run_job(job(tmp_path, [Sample("a", FileImage(str(path)), "", ("x",))]))
    [entry] = read_index(tmp_path / "work/output/refine/00000.jsonl")
    assert entry.member == "a.png"


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    class FullDisk(shard_jobs.HashedFile):
        def __init__(self, file, path):
            super().__init__(file, path)
            real = self._file

            class Full(io.RawIOBase):
                def write(self, data):
                    if real.tell() > 3000:
                        raise OSError(28, "No space left on device")
                    return real.write(data)

            self._file = Full()

    monkeypatch.setattr(shard_jobs, "HashedFile", FullDisk)
    monkeypatch.setattr(shard_jobs, "_CHUNK", 1000)
    with pytest.raises(UserError, match=r"refine/00000.tar: cannot be written \(No space left on device\); make room"):
        shard_jobs.run_job(job(tmp_path, [sample(tmp_path, n) for n in range(8)]))
    assert [p for p in (tmp_path / "work").rglob("*") if p.is_file()] == []
