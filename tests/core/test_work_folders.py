"""Where a stage builds its output: by fingerprint, on the disk of its target, outside of what DVC deletes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline_lib.core import artifacts, work_folders
from pipeline_lib.core.errors import UserError

OWN = {"PYTHONPATH": str(Path(__file__).parents[2])}


def test_another_fingerprint_is_another_work_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("data/refined")
    one = work_folders.work_directory("refine", "a" * 64, target)
    (one / "checkpoint.pt").write_text("old")
    assert list(work_folders.work_directory("refine", "b" * 64, target).iterdir()) == []
    assert work_folders.work_directory("refine", "a" * 64, target) == one
    assert not Path("data").exists()


def test_a_work_folder_lies_on_the_file_system_of_its_target(tmp_path, monkeypatch):
    """`data` is a link to another disk here, as it may be a mount; /dev/shm is another file system than /tmp."""
    monkeypatch.chdir(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        if os.stat(disk).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("one file system")
        Path("data").symlink_to(disk)
        work = work_folders.work_directory("refine", "a" * 64, Path("data/refined"))
        (work / "file").write_text("whole")
        artifacts.publish(work, Path("data/refined"))
        assert Path("data/refined/file").read_text() == "whole"
        assert work_folders.work_directory("refine", "a" * 64, Path("data/refined")) == work


def test_what_a_temporary_experiment_resumes_is_not_in_the_folder_that_dvc_deletes(tmp_path, monkeypatch):
    temporary = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    temporary.mkdir(parents=True)
    for name, value in {"DVC_ROOT": str(tmp_path), "DVC_EXP_NAME": "one"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(temporary)
    one = work_folders.work_directory("refine", "a" * 64, Path("data/refined"))
    assert one.is_relative_to(tmp_path / ".checkpoints")
    monkeypatch.setenv("DVC_EXP_NAME", "two")  # which may run at the same time
    assert work_folders.work_directory("refine", "a" * 64, Path("data/refined")) != one
    monkeypatch.chdir(tmp_path)  # `dvc exp run` without --temp
    assert work_folders.work_directory("refine", "a" * 64, Path("data/refined")).parent == Path(".checkpoints")


def test_a_place_that_takes_nothing_is_refused_before_the_work(tmp_path, monkeypatch):
    """Of a root user's tests, only such as root cannot write to either: here /proc."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^/proc/self/refined: is a mount|^/proc/self: nothing can be put there"):
        work_folders.work_directory("refine", "a" * 64, Path("/proc/self/refined"))


HOLD = """
import sys, time
from pathlib import Path
from pipeline_lib.core.work_folders import only_writer
with only_writer(Path("data/refined")):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that makes data/refined of this project."""
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, env={**os.environ, **OWN})
    assert process.stdout.readline() == b"in\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_is_made_by_one_process_at_a_time_until_it_ends_however_it_does(holder, monkeypatch):
    with pytest.raises(UserError, match=r"^data/refined: another process is making it"):
        work_folders.only_writer(Path("data/refined")).__enter__()
    with work_folders.only_writer(Path("data/base")):
        pass
    monkeypatch.setenv("RANK", "1")  # of a world whose first process holds it
    with work_folders.only_writer(Path("data/refined")):
        pass
    monkeypatch.delenv("RANK")
    holder.kill()
    holder.wait()
    for _ in range(2):
        with work_folders.only_writer(Path("data/refined")):
            pass
    assert list(work_folders.CHECKPOINTS.iterdir()) == []


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """The one that held it ends between this one's opening and locking: its file is gone, and a third may lock anew."""
    monkeypatch.chdir(tmp_path)
    original, removed = work_folders.fcntl.lockf, []

    def lockf(file, how):
        original(file, how)
        if not removed:
            removed.append(os.readlink(f"/proc/self/fd/{file}"))
            Path(removed[0]).unlink()

    monkeypatch.setattr(work_folders.fcntl, "lockf", lockf)
    with work_folders.only_writer(Path("data/refined")):
        assert Path(removed[0]).exists()
