"""Where a stage builds its output: by fingerprint, on the disk of its target, outside of what DVC deletes."""

import os
import tempfile
from pathlib import Path

import pytest

from pipeline_lib.core import artifacts, work_folders
from pipeline_lib.core.errors import UserError


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
