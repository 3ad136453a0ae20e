"""Whole files or none: atomic writes, manifests that notice every change, work folders that follow the fingerprint."""

import hashlib
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline_lib.core import artifacts, work_folders
from pipeline_lib.core.errors import UserError


def folder(tmp_path):
    directory = tmp_path / "out"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.txt").write_text("a")
    (directory / "sub" / "b.txt").write_text("b")
    artifacts.write_manifest(directory, "shard", num_samples=2)
    return directory


def test_manifest_is_a_pure_function_of_the_content(tmp_path):
    first, second = folder(tmp_path / "one"), folder(tmp_path / "two")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    body = artifacts.read_manifest(first, stage="shard")
    assert body["num_samples"] == 2
    assert body["files"]["sub/b.txt"] == {"sha256": artifacts.sha256_bytes(b"b"), "bytes": 1}
    assert artifacts.verify(first) == []


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda d: (d / "a.txt").write_text("x"), "SHA-256 differs"),
        (lambda d: (d / "a.txt").write_text("xx"), "2 bytes, manifest says 1"),
        (lambda d: (d / "a.txt").unlink(), "missing"),
        (lambda d: (d / "new.txt").write_text(""), "not in the manifest"),
    ],
)
def test_verify_sees_every_change(tmp_path, harm, problem):
    directory = folder(tmp_path)
    harm(directory)
    [line] = artifacts.verify(directory)
    assert problem in line


def test_edited_foreign_or_missing_manifest_is_refused(tmp_path):
    directory = folder(tmp_path)
    with pytest.raises(UserError, match="written by stage `shard`, expected `refine`"):
        artifacts.read_manifest(directory, stage="refine")
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"num_samples": 2', '"num_samples": 3'))
    with pytest.raises(UserError, match="digest does not fit"):
        artifacts.read_manifest(directory)
    path.unlink()
    with pytest.raises(UserError, match="missing or unfinished"):
        artifacts.read_manifest(directory)


def test_json_lines_come_back_whatever_their_texts_hold(tmp_path):
    """Some characters end a line for `str.splitlines` and none in a file: a key may hold them."""
    rows = [{"key": "a\u2028b\x85c\n", "sha256": "00"}, {"key": "", "sha256": ""}]
    artifacts.write_jsonl(tmp_path / "x.jsonl", iter(rows))
    assert list(artifacts.read_jsonl(tmp_path / "x.jsonl")) == rows
    assert (tmp_path / "x.jsonl").read_bytes().count(b"\n") == 2
    artifacts.write_jsonl(tmp_path / "x.jsonl", [])
    assert (tmp_path / "x.jsonl").read_bytes() == b""


LONG, DEEP = b"1" * 5_000, b"[" * 100_000 + b"]" * 100_000  # more than Python's reader of JSON bears


@pytest.mark.parametrize("value", [b"NaN", b"1e999", b'"\\ud800"', LONG, DEEP], ids=range(5))
def test_a_manifest_with_a_value_that_has_no_digest_is_refused(tmp_path, value):
    path = folder(tmp_path) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"num_samples": 2', b'"num_samples": ' + value))
    with pytest.raises(UserError, match=r"manifest.json: (digest does not fit its content|not valid JSON)"):
        artifacts.read_manifest(path.parent)


@pytest.mark.parametrize("line", [b'{"half": ', b"", b'"\xff"', LONG, DEEP], ids=range(5))
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    found = artifacts.read_jsonl(tmp_path / "x.jsonl")
    assert next(found) == {"a": 1}
    with pytest.raises(UserError, match=r"x.jsonl: line 2 is not valid JSON"):
        next(found)
    with pytest.raises(UserError, match=r"y.jsonl: no such file; run the stage that writes it"):
        list(artifacts.read_jsonl(tmp_path / "y.jsonl"))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(path, {"bad": float("nan")})
    with pytest.raises(TypeError, match="bytes"), artifacts.atomic_open(path) as file:
        file.write("half of a text where bytes belong")
    assert artifacts.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_leaves_no_half_written_output(tmp_path):
    """A real write failure (file size limit) inside output_directory: the target keeps its old content."""
    target = tmp_path / "out"
    with artifacts.output_directory(target, "shard") as place:
        place("old.txt").write_text("old")
    code = (
        "import sys; from pathlib import Path; from pipeline_lib.core import artifacts\n"
        "with artifacts.output_directory(Path(sys.argv[1]), 'shard') as place:\n"
        "    artifacts.write_bytes(place('big.bin'), b'x' * 1_000_000)\n"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (target / "old.txt").read_text() == "old"
    assert artifacts.verify(target) == []


def test_a_hashed_file_knows_its_hash_and_size(tmp_path):
    pieces = [bytes([n]) * (n * 70_001) for n in range(10)]  # 3 MB: some are written at once, some with later ones
    with artifacts.hashed_file(tmp_path / "x.bin") as file:
        for number, piece in enumerate(pieces):
            assert file.write(piece) == len(piece)
            assert file.tell() == sum(map(len, pieces[: number + 1]))
    assert (tmp_path / "x.bin").read_bytes() == b"".join(pieces)
    assert file.num_bytes == file.tell()
    assert file.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_hashed_file_that_fails_is_named_and_leaves_nothing(tmp_path):
    """A real write failure in the first of two files: the message names that one, and neither remains."""
    code = (
        "import sys; from pathlib import Path; from pipeline_lib.core.artifacts import hashed_file\n"
        "folder = Path(sys.argv[1])\n"
        "with hashed_file(folder / 'big', 'buy a disk') as big, hashed_file(folder / 'small', 'buy a disk') as small:\n"
        "    small.write(b'x'); big.write(b'x' * 3_000_000)\n"
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, preexec_fn=limit)
    assert done.stderr.endswith(f"UserError: {tmp_path}/big: cannot be written (File too large); buy a disk\n")
    assert list(tmp_path.iterdir()) == []


def test_publish_replaces_a_folder_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in ("one", "two"):
        work = work_folders.work_directory("refine", content * 20, Path("data/refined"))
        assert work.parent == Path(".checkpoints")
        (work / "file").write_text(content)
        artifacts.publish(work, tmp_path / "data" / "refined")
    assert (tmp_path / "data" / "refined" / "file").read_text() == "two"
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["refined"]


def _publish_often(root, name):
    for number in range(200):
        work = root / f"{name}{number}"
        work.mkdir()
        for file in "abc":
            (work / file).write_text(name)
        artifacts.publish(work, root / "data")
    return name


def test_two_processes_may_publish_one_folder_at_once(tmp_path):
    """Neither fails, nothing is left behind, and what stands there at the end is one of the two, whole."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_publish_often, [tmp_path] * 2, ["one", "two"])) == ["one", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["a", "b", "c"]
    assert len({p.read_text() for p in (tmp_path / "data").iterdir()}) == 1


def test_what_cannot_be_published_leaves_what_stands_there(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("old")
    with pytest.raises(FileNotFoundError):
        artifacts.publish(tmp_path / "nowhere", tmp_path / "data")
    assert (tmp_path / "data" / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_process_left_half_written_is_no_part_of_the_manifest(tmp_path):
    """SIGKILL between opening a temporary file and renaming it: the folder has the same digest as without."""
    whole = artifacts.read_manifest(folder(tmp_path / "whole"))
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline_lib.core import artifacts\n"
        "with artifacts.atomic_open(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = tmp_path / "killed" / "out"
    subprocess.run([sys.executable, "-c", code, killed / "sub" / "b.txt"], check=False)
    [left_over] = (killed / "sub").iterdir()
    assert left_over.read_bytes() == b"half"
    (killed / "a.txt").write_text("a")
    (killed / "sub" / "b.txt").write_text("b")
    artifacts.write_manifest(killed, "shard", num_samples=2)
    assert artifacts.read_manifest(killed) == whole


def test_an_output_folder_of_a_killed_process_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline_lib.core import artifacts\n"
        "with artifacts.output_directory(Path(sys.argv[1]), 'shard') as place:\n"
        "    place('a').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False)
    assert [p.name.startswith(".out.") for p in tmp_path.iterdir()] == [True]
    with artifacts.output_directory(tmp_path / "out", "shard") as place:
        place("a").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
