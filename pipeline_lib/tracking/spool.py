"""The write-ahead file of one tracked run: a line per operation, kept until the tracking store has taken all of them.

`.tracking-spool/<stage>-<id>.jsonl`, and a folder of the same name with the files to upload. The process that logs
holds a lock on the file, so that a later delivery leaves living runs alone. A torn last line (the process was killed
while writing) is passed over. Knows nothing of MLflow.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pipeline_lib.core.errors import UserError

HOME = ".tracking-spool"
Op = dict[str, Any]  # one line; "op" names the operation


def lock(file: IO[bytes], kind: int) -> bool:
    """Lock a file without waiting; False if another process has it.

    Raises:
        UserError: The file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second: NFS, where locks are another kind
        return False
    except OSError as error:
        raise UserError(
            f"{file.name}: cannot be locked ({error.strerror}), so nothing can be logged from here; put the project on "
            "a file system with locks (Lustre: mount with `flock`), or set tracking.mode to disabled"
        ) from error
    return True


class Spool:
    """One run's operations on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    @classmethod
    def of(cls, root: Path, stage: str, uid: str) -> Spool:
        """The spool of run `uid` of `stage` in the project at `root`."""
        return cls(root / HOME / f"{stage}-{uid[:12]}.jsonl")

    @classmethod
    def all(cls, root: Path) -> list[Spool]:
        """Every spool of the project, the run that began first at the front."""
        return sorted((cls(path) for path in (root / HOME).glob("*.jsonl")), key=lambda s: s.first().get("time", 0))

    def open(self, *, patience: float = 0.0) -> bool:
        """Open for appending and lock; False if another process has it for more than `patience` seconds."""
        deadline = time.monotonic() + patience
        while not self._open():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def _open(self) -> bool:
        file = self._create()
        if not lock(file, fcntl.LOCK_EX) or not self._is(file):
            file.close()
            return False
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # ends the torn line of a killed run
        self._file = file
        return True

    def _create(self) -> IO[bytes]:
        for _ in range(100):
            with suppress(FileNotFoundError, FileExistsError):  # another process is removing the empty folder
                self.path.parent.mkdir(parents=True, exist_ok=True)
                return self.path.open("ab+", buffering=0)
        raise UserError(f"{self.path}: cannot be made; see what stands in its place")

    def _is(self, file: IO[bytes]) -> bool:
        """Whether `file` is the one at our path; another process may have removed that in between."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False

    def is_alive(self) -> bool:
        """Whether some process is logging to it."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            return not lock(file, fcntl.LOCK_SH)
        return False

    def append(self, op: Op) -> None:
        """Add one operation, in one write; it survives the death of this process (and with `sync`, of the machine)."""
        assert self._file is not None, "open() first"
        line = json.dumps(op).encode() + b"\n"
        if (written := self._file.write(line)) != len(line):  # no torn line may stand before the next one
            os.ftruncate(self._file.fileno(), self.size() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        assert self._file is not None, "open() first"
        os.fsync(self._file.fileno())

    def read(self, offset: int = 0) -> Iterator[tuple[Op, int]]:
        """The operations from byte `offset` on, each with the offset after it."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                with suppress(ValueError):
                    yield json.loads(line), offset

    def first(self) -> Op:
        """The operation that began the run; {} where it was not written, or is broken."""
        first = next((op for op, _ in self.read()), {})
        return first if first.get("op") == "start" else {}

    def last(self) -> Op:
        """The newest operation; {} where there is none."""
        last: Op = {}
        for op, _ in self.read():
            last = op
        return last

    def size(self) -> int:
        """Bytes in the file; 0 where it is gone."""
        return self.path.stat().st_size if self.path.exists() else 0

    def place(self, name: str) -> Path:
        """A new path in the spool's folder for a file called `name`; its parent exists."""
        path = self.path.with_suffix("") / uuid.uuid4().hex[:8] / Path(name).name
        path.parent.mkdir(parents=True)
        return path

    def file_of(self, op: Op) -> Path:
        """The file that an operation names by its path below the spool's folder."""
        return self.path.with_suffix("") / op["file"]

    def name_of(self, path: Path) -> str:
        """The name of a `place`d file in an operation."""
        return path.relative_to(self.path.with_suffix("")).as_posix()

    def close(self) -> None:
        """Give the lock back; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        """Remove the file and its folder, and the home of the spools when it is empty."""
        shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self.close()
        with suppress(OSError):
            self.path.parent.rmdir()
