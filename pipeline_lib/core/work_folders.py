"""Where a stage builds its output until it is renamed into place: on a disk where that works, kept across a kill."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError

CHECKPOINTS = Path(".checkpoints")


def work_directory(stage: str, fingerprint: str, target: Path) -> Path:
    """Make the folder in which `stage` builds `target`, kept across a kill: `.checkpoints/<stage>-<fingerprint>/`.

    Another fingerprint (parameters, inputs or code changed) is another folder, so that an old part is never resumed.
    It lies where a rename to `target` works: beside it, where that is on another file system. That of an experiment in
    a temporary folder, which DVC deletes, lies in the project itself, under the experiment's name.

    Raises:
        UserError: Nothing can be put where `target` is to stand.
    """
    if target.is_mount():
        raise UserError(f"{target}: is a mount of its own, which cannot be replaced; mount {target.parent} instead")
    home, experiment = CHECKPOINTS, temporary_experiment()
    if experiment:
        home = Path(os.environ["DVC_ROOT"], CHECKPOINTS, experiment)
    parent = next(folder for folder in target.absolute().parents if folder.is_dir())
    if not _renames(home, parent):
        home = parent / CHECKPOINTS
        _renames(home, parent)
    path = home / f"{stage}-{fingerprint[:16]}"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Be the only command of this project that makes `target` inside the block; processes of one world are one.

    The lock is the process's: it ends with it, however that ends, and no worker takes it over. A file system without
    locks lets everybody in.

    Raises:
        UserError: Another process makes it.
    """
    rank, *_ = runtime.world_environment() or (0, 1, 0)
    if rank:
        yield
        return
    path = CHECKPOINTS / f"{target.as_posix().replace('/', '-')}.lock"
    file = _locked(path, target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path, target: Path) -> int:
    """Return the open file `path`, locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(file)
                raise UserError(f"{target}: another process is making it; wait until that has ended") from None
        with suppress(FileNotFoundError):  # removed by one that has just ended: then this lock is of no file
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def temporary_experiment() -> str:
    """Return the name of the DVC experiment that runs in a temporary folder (`--temp`, the queue); else ""."""
    root = os.environ.get("DVC_ROOT")
    return os.environ.get("DVC_EXP_NAME", "") if root and Path(root).resolve() != Path().resolve() else ""


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what will need `num_bytes` on the disk of `folder`, beside what is there.

    Raises:
        UserError: There are fewer.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"{folder}: {num_bytes / 1e9:.2f} GB will be needed there, {free / 1e9:.2f} are free; make room"
        )


def bytes_in(folder: Path) -> int:
    """Return the bytes of the files below `folder`, as a killed run has left them; 0 where it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _renames(home: Path, parent: Path) -> bool:
    """Return whether a folder below `home` can be renamed into `parent`; not so between file systems, or mounts.

    Raises:
        UserError: Nothing can be written to `parent`.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = Path(tempfile.mkdtemp(dir=home))
        there = parent / f".{probe.name}.tmp"
        try:
            probe.rename(there)
        except OSError as error:
            probe.rmdir()
            if error.errno != errno.EXDEV:
                raise
            return False
        there.rmdir()
    except OSError as error:
        raise UserError(
            f"{parent}: nothing can be put there from {home} ({error.strerror}); see to room and permissions, or "
            "change `paths:`"
        ) from None
    return True
