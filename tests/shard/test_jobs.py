"""One shard: the bytes of the files, keys that survive webdataset's rule, writes that leave nothing behind."""

import io
import tarfile

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import read_index
from pipeline_lib.shard.jobs import FileJob, escape_key, run_job
from pipeline_lib.shard.triage import Rules
from pipeline_lib.sources.samples import FileImage, Sample, Task
from pipeline_lib.sources.tars import split_member
from tests import small_sets
from tests.small_sets import image_file, write


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), unique=True, max_size=20))
def test_escaped_keys_stay_apart_and_whole(keys):
    keys = [key for key in keys if key]
    escaped = [escape_key(key) for key in keys]
    assert len(set(escaped)) == len(keys)
    for name in escaped:
        assert split_member(f"{name}.jpg") == (name, "jpg")
        assert len(tarfile.TarInfo(f"{name}.jpeg").tobuf(tarfile.USTAR_FORMAT)) == 512


def job(tmp_path, samples, **changes):
    rules = Rules(
        work=tmp_path / "work",
        settings=small_sets.settings(),
        captioned=True,
        tasks=changes.pop("tasks", {}),
    )
    return FileJob(name="refine/00000", rules=rules, part="refine", samples=tuple(samples), **changes)


def sample(tmp_path, n, content=None, captions=("a caption",), **more):
    path = write(tmp_path / f"images/{n}.jpg", image_file(n) if content is None else content)
    return Sample(f"k.{n}", FileImage(str(path)), "jpg", captions, **more)


@pytest.mark.parametrize("name", ["half\ud800.jpg", "nul\0.jpg", "gone.jpg"])
def test_an_image_of_a_name_that_no_file_has_is_quarantined(tmp_path, name):
    [record] = run_job(job(tmp_path, [Sample("a", FileImage(str(tmp_path / name)), "jpg", ("a caption",))])).records
    assert (record.num_samples, [key for key, _ in record.quarantined]) == (0, ["a"])


def test_a_shard_holds_the_bytes_of_the_files_at_the_offsets_of_the_index(tmp_path):
    samples = [sample(tmp_path, n, labels={"class": n % 2}) for n in range(5)]
    [record] = run_job(job(tmp_path, samples, tasks={"class": Task(("x", "y"))})).records
    tar = (tmp_path / "work/output/refine/00000.tar").read_bytes()
    entries = list(read_index(tmp_path / "work/output/refine/00000.jsonl"))
    assert [tar[e.offset : e.offset + e.size] for e in entries] == [image_file(n) for n in range(5)]
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        members = file.getmembers()
        assert [m.name for m in members][:4] == ["k%2E0.jpg", "k%2E0.cls", "k%2E0.json", "k%2E0.txt"]
        assert [(m.offset_data, m.size) for m in members if m.name.endswith("jpg")] == [
            (e.offset, e.size) for e in entries
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, 0, "clip", "clip", 0o444)
        }
        assert file.extractfile("k%2E1.json").read() == (b'{"captions":["a caption"],"key":"k.1","labels":{"class":1}}')
        assert file.extractfile("k%2E1.cls").read() == b"1"
    assert (record.num_samples, record.num_captions, record.num_bytes) == (5, 5, len(tar))
    assert record.sha256 == artifacts.sha256_bytes(tar)


def test_webdataset_reads_a_shard_as_image_and_text_with_no_conversion(tmp_path):
    """Two members are all that open_clip's trainer asks for: an image and a .txt."""
    run_job(job(tmp_path, [sample(tmp_path, n, captions=(f"dog {n}, “a”", "another")) for n in range(3)]))
    pairs = webdataset.WebDataset(str(tmp_path / "work/output/refine/00000.tar"), shardshuffle=False)
    read = [(image, text.decode()) for image, text in pairs.to_tuple("jpg;png;jpeg;webp", "txt")]
    assert read == [(image_file(n), f"dog {n}, “a”") for n in range(3)]


def test_a_finished_shard_is_kept_and_a_changed_one_is_not(tmp_path):
    path = tmp_path / "work/output/refine/00000.tar"
    todo = job(tmp_path, [sample(tmp_path, n) for n in range(3)])
    first = run_job(todo)
    content, inode = path.read_bytes(), path.stat().st_ino
    again = run_job(todo)
    assert again.resumed
    assert again.records == first.records
    assert path.stat().st_ino == inode
    path.write_bytes(content[:600] + b"\xff" + content[601:])  # same size: only the hash can tell
    assert not run_job(todo).resumed
    assert path.read_bytes() == content
    write(tmp_path / "images/1.jpg", image_file(99))  # a source changed
    assert not run_job(todo).resumed
    assert image_file(99) in path.read_bytes()
    todo = job(tmp_path, [sample(tmp_path, n, captions=("new",)) for n in range(3)])
    assert not run_job(todo).resumed


def test_an_image_without_a_usual_extension_gets_that_of_its_format(tmp_path):
    path = write(tmp_path / "images/noext", image_file(1, "PNG"))
    run_job(job(tmp_path, [Sample("a", FileImage(str(path)), "", ("x",))]))
    [entry] = read_index(tmp_path / "work/output/refine/00000.jsonl")
    assert entry.member == "a.png"


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    class FullDisk(artifacts.HashedFile):
        def __init__(self, *args):
            super().__init__(*args)
            real = self._file

            class Full(io.RawIOBase):
                def write(self, data):
                    if real.tell() > 3000:
                        raise OSError(28, "No space left on device")
                    return real.write(data)

            self._file = Full()

    monkeypatch.setattr(artifacts, "HashedFile", FullDisk)
    monkeypatch.setattr(artifacts, "_CHUNK", 1000)
    with pytest.raises(UserError, match=r"refine/00000.tar: cannot be written \(No space left on device\); make room"):
        run_job(job(tmp_path, [sample(tmp_path, n) for n in range(8)]))
    assert [p for p in (tmp_path / "work").rglob("*") if p.is_file()] == []
