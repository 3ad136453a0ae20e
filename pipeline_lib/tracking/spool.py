"""The spool: a write-ahead file of what one run logged, kept until the MLflow store has taken all of it.

`.tracking-spool/<stage>-<id>.jsonl` holds one operation a line, and the folder of the same name copies of the files to
upload. Whoever appends holds a lock on the file, so that a delivery leaves living runs alone. A line torn by a kill is
skipped. The operations, each {"op": its name} with these fields (a point is [name, value, step or null, time], a time
is in milliseconds since 1970):

op        fields                      written when, by whom              why carrying it out twice equals once
--------  --------------------------  ---------------------------------  ----------------------------------------------
start     uid stage time row note     first, by the stage; again with    the run is found by its tag `run.uid`, the row
          params tags source about    `resumed`: true by a process that  by its configuration; what repeated requests
          upstream [resumed]          goes on with the run               made for one uid is deleted at `end`
metrics   points                      any time, by the stage             points whose name and step (if null: time) the
                                                                         run has are left out
headline  points texts                any time, by the stage             equal points are one in MLflow; tags are set
artifact  file (of the folder)        any time, by the stage             the same file is uploaded to the same place
          folder (in MLflow)
          [on_row]
dataset   name digest context         any time, by the stage             MLflow knows an input by name and digest
output    digest                      any time, by the stage             a tag is set
end       status message time         last, by the stage; as KILLED      no second point of `seconds` with one time;
          [seconds]                   without seconds by who delivers    the status is set
dropped                               instead of `end`, by a stage that  the run is deleted, with a row that was made
                                      resumes another run, or is         for it alone, if they are still there
                                      refused as it begins

A sender process (`delivery.main`) reads the spool while the stage appends; `lineage sync` (`delivery.deliver`) reads
one whose stage is gone. Both go from the first line to the last and repeat an operation that failed; the next delivery
after one that was cut off begins at the first line. The spool is removed when the store has everything.
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
Op = dict[str, Any]  # one line of the table above


def now() -> int:
    """Return the milliseconds since 1970, as MLflow counts time."""
    return time.time_ns() // 1_000_000


def lock(file: IO[bytes], kind: int) -> bool:
    """Lock a file without waiting; return False if another process has it.

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
    """The file of one run's operations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    @classmethod
    def of(cls, root: Path, stage: str, uid: str) -> Spool:
        """Return the spool of run `uid` of `stage` in the project at `root`; the file need not exist."""
        return cls(root / HOME / f"{stage}-{uid[:12]}.jsonl")

    @classmethod
    def all(cls, root: Path) -> list[Spool]:
        """List every spool of the project, the run that began first at the front."""
        return sorted((cls(path) for path in (root / HOME).glob("*.jsonl")), key=lambda s: s.first().get("time", 0))

    def open(self, *, patience: float = 0.0) -> bool:
        """Open for appending and lock; return False if another process holds it for more than `patience` seconds."""
        deadline = time.monotonic() + patience
        while not self._open():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def _open(self) -> bool:
        file = self._create()
        if not lock(file, fcntl.LOCK_EX) or not self._is_ours(file):
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

    def _is_ours(self, file: IO[bytes]) -> bool:
        """Return whether `file` still is the one at our path; another process may have removed that in between."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        return False

    def is_alive(self) -> bool:
        """Return whether some process is logging to it."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            return not lock(file, fcntl.LOCK_SH)
        return False

    def append(self, op: Op) -> None:
        """Add one operation by one write, which survives the death of this process (after `sync`, of the machine)."""
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
        """Yield the operations from byte `offset` on, each with the offset of the next line."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                with suppress(ValueError):
                    yield json.loads(line), offset

    def first(self) -> Op:
        """Return the operation `start`; {} where it was not written, or is broken."""
        first = next((op for op, _ in self.read()), {})
        return first if first.get("op") == "start" else {}

    def last(self) -> Op:
        """Return the newest operation; {} where there is none."""
        last: Op = {}
        for op, _ in self.read():
            last = op
        return last

    def is_ended(self) -> bool:
        """Return whether the run has ended, was dropped, or has nothing left to send (the file is gone)."""
        return self.last().get("op", "end") in ("end", "dropped")

    def end_if_killed(self) -> None:
        """Append the `end` that a killed process could not write, if it is missing."""
        if not self.is_ended():
            self.append({"op": "end", "status": "KILLED", "message": "", "time": now()})

    def size(self) -> int:
        """Return the number of bytes in the file; 0 where it is gone."""
        return self.path.stat().st_size if self.path.exists() else 0

    def keep(self, file: Path) -> str:
        """Copy a file into the spool's folder; return its name in an operation `artifact`."""
        name = f"{uuid.uuid4().hex[:8]}/{file.name}"
        copy = self.path.with_suffix("") / name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(file, copy)
        return name

    def file_of(self, op: Op) -> Path:
        """Return the path of the file that an operation `artifact` names."""
        return self.path.with_suffix("") / op["file"]

    def close(self) -> None:
        """Release the lock; the file stays."""
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
