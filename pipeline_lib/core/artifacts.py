"""Every file that crosses a stage: atomic writes, hashes, directory manifests, folders put into their place.

Rules held here, once: a file is written under a temporary name, fsynced and renamed; a folder is built in
`.checkpoints/<stage>-<fingerprint>/` (see `work_folders`) and renamed into `data/` when it is whole; `manifest.json`
is written last and lists every other file with its SHA-256, so that a reader can tell a whole folder from a part.
Nothing written here holds a time, a host name or an absolute path, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline_lib.core.errors import UserError

MANIFEST = "manifest.json"
TRAINED_ON = "trained_on.jsonl"  # {"key", "sha256"} (demo: "pixels" too) of each image that shaped the weights
HISTORY = "history.jsonl"  # of refined: a line per step
_CHUNK = 1 << 20  # bytes that `HashedFile` hashes and writes at a time


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON whose bytes depend on its content alone (sorted keys, no spaces, NaN refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the hex SHA-256 of `canonical_json(value)`."""
    return sha256_bytes(canonical_json(value).encode())


@contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; fsync and rename it to `path` if the block succeeds, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class HashedFile:
    """A file that hashes what is written to it, a megabyte at a time; after `abandon`, what is written goes nowhere."""

    def __init__(self, file: IO[bytes], path: Path, remedy: str) -> None:
        """Wrap `file`; `path` is what a message names, `remedy` what it advises."""
        self._file: IO[bytes] | None = file
        self._path = path
        self._remedy = remedy
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        """Take `data`."""
        self._pending += data
        if len(self._pending) >= _CHUNK:
            self.flush()
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes taken so far."""
        return self.num_bytes + len(self._pending)

    def flush(self) -> None:
        """Hash and write what was taken."""
        if self._file is not None:
            self._hash.update(self._pending)
            self.num_bytes += len(self._pending)
            try:
                self._file.write(self._pending)
            except OSError as error:  # said here, since the next file in the writer's `with` would call it its own
                raise _cannot_write(self._path, error, self._remedy) from None
        self._pending.clear()

    def abandon(self) -> None:
        """Ignore whatever a writer still wants to write when it is thrown away."""
        self._file = None

    def hexdigest(self) -> str:
        """Return the hex SHA-256 of everything written."""
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: Path, remedy: str = "make room and run again") -> Iterator[HashedFile]:
    """Write `path` atomically through a `HashedFile`.

    Raises:
        UserError: It cannot be written; nothing of it remains.
    """
    try:
        with atomic_open(path) as file:
            hashed = HashedFile(file, path, remedy)
            try:
                yield hashed
                hashed.flush()
            except BaseException:
                hashed.abandon()
                raise
    except OSError as error:
        raise _cannot_write(path, error, remedy) from None


def _cannot_write(path: Path, error: OSError, remedy: str) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); {remedy}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in the order given, NaN and infinity refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it (dvc repro)") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON Lines, each `canonical_json`, atomically."""
    with atomic_open(path, "w") as file:
        file.writelines(canonical_json(row) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of JSON Lines, read one at a time.

    Raises:
        UserError: The file is missing, or a line is not JSON.
    """
    number = 1
    try:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
                number += 1
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it (dvc repro)") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number} is not valid JSON ({error})") from None


def write_manifest(directory: Path, stage: str, *, known: Mapping[str, str] | None = None, **facts: Any) -> str:
    """Write `directory/manifest.json`: every file's SHA-256 and size, `facts`, and a digest over both.

    Temporary files that a killed process left in the folder are removed first: they are no part of its content.

    Args:
        directory: A folder whose files are all in place.
        stage: Name of the stage that wrote it.
        known: SHA-256 by relative path, for files already hashed while they were written.
        facts: JSON values that describe the content (counts, fingerprints).

    Returns:
        The manifest's `digest` [64 hex digits], a pure function of the content.
    """
    for leftover in list(directory.rglob(".*.tmp")):
        leftover.unlink()
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        name = path.relative_to(directory).as_posix()
        files[name] = {"sha256": (known or {}).get(name) or sha256_file(path), "bytes": path.stat().st_size}
    body = {"stage": stage, **facts, "files": files}
    body["digest"] = digest(body)
    write_json(directory / MANIFEST, body)
    return body["digest"]


def read_manifest(directory: Path, *, stage: str | None = None) -> dict[str, Any]:
    """Read `directory/manifest.json` and check that it describes itself (not yet the files: see `verify`).

    Raises:
        UserError: It is missing, was edited, or was written by another stage than `stage`.
    """
    path = directory / MANIFEST
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file, so {directory} is missing or unfinished; run `dvc repro`")
    body = read_json(path)
    if not _fits_digest(body):
        raise UserError(f"{path}: digest does not fit its content; the file was changed by hand, run `dvc repro -f`")
    if stage is not None and body.get("stage") != stage:
        raise UserError(f"{path}: written by stage `{body.get('stage')}`, expected `{stage}`; check `paths:`")
    return body


def _fits_digest(body: Any) -> bool:
    """Return whether a manifest's digest is that of the rest of it; values that `digest` refuses fit none."""
    try:
        return isinstance(body, dict) and body.get("digest") == digest({k: v for k, v in body.items() if k != "digest"})
    except (ValueError, RecursionError):
        return False


def digests(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the digest of each folder's manifest, under the folder's name in the mapping.

    Raises:
        UserError: See `read_manifest`.
    """
    return {name: read_manifest(folder)["digest"] for name, folder in folders.items()}


def file_problem(directory: Path, name: str, manifest: Mapping[str, Any]) -> str:
    """Compare a file of `directory` with what its manifest says; return what differs, "" where nothing does."""
    path, entry = directory / name, manifest["files"].get(name)
    if entry is None:
        return f"{path}: not in the manifest"
    if not os.path.isfile(path):
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, manifest says {entry['bytes']}"
    return "" if sha256_file(path) == entry["sha256"] else f"{path}: SHA-256 differs from the manifest"


def check_file(directory: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a file of `directory` that is not what its manifest says.

    Raises:
        UserError: It is missing or another.
    """
    if problem := file_problem(directory, name, manifest):
        raise UserError(f"{problem}; run `dvc repro -f {manifest['stage']}`")


def verify(directory: Path) -> list[str]:
    """Compare every file of `directory` with its manifest; return what differs, one line each (empty: all well)."""
    body = read_manifest(directory)
    problems = [problem for name in body["files"] if (problem := file_problem(directory, name, body))]
    extra = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - set(body["files"])
    problems += [f"{directory / name}: not in the manifest" for name in sorted(extra - {MANIFEST})]
    return problems


def publish(work: Path, target: Path) -> None:
    """Rename the finished folder `work` to `target`, replacing what stands there; of several at once the last stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.old"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    while True:
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            work.rename(target)
            return
        except OSError as error:  # another process was faster; its folder makes room as well
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(FileNotFoundError):
                    old.rename(target)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def output_directory(target: Path, stage: str) -> Iterator[Callable[..., Path]]:
    """Build a small folder under a temporary name and publish it with its manifest when the block succeeds.

    Yields a function: `place("file.json")` is the path to write to, `place(**facts)` adds facts to the manifest.
    """
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    work.mkdir(parents=True)
    facts: dict[str, Any] = {}

    def place(name: str = "", **more: Any) -> Path:
        facts.update(more)
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    try:
        yield place
        write_manifest(work, stage, **facts)
        publish(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
