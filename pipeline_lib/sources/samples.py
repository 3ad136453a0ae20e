"""What a set is made of: a `Source` with a stream of samples, each with texts and a reference to its image.

A sample holds no image, only a reference whose `read()` gives the bytes of the image file as they are, so that a
stream of samples costs the memory of its texts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline_lib.core.choices import Choice
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.tables import Rows

TEMPLATES = ("a photo of a {}", "a photo of the {}", "a picture of a {}", "an image of a {}")
CLASS_TASK = "class"  # the task of sets that have only one


class ImageRef(Protocol):
    """A reference to an image file; the kinds are `FileImage`, `TarImage` and `openmoji_drawing.DrawnImage`."""

    @property
    def name(self) -> str:
        """File name, by which list files may call it; empty if there is none."""

    @property
    def where(self) -> str:
        """How messages name it."""

    @property
    def size(self) -> int:
        """Bytes; 0 if unknown."""

    def read(self) -> bytes:
        """Return the bytes of the image file."""

    def stamp(self) -> list[Any]:
        """Return JSON values that change when the image does."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file; `path` as reachable from the current folder."""

    path: str

    @property
    def name(self) -> str:
        """File name, by which list files may call it."""
        return os.path.basename(self.path)

    @property
    def where(self) -> str:
        """How messages name it."""
        return encodable(self.path)

    @property
    def size(self) -> int:
        """Bytes.

        Raises:
            OSError: It is missing, or is no regular file; a device or a pipe might give bytes without end.
        """
        with _named(self.path):
            status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        return status.st_size

    def read(self) -> bytes:
        """Return the file's bytes."""
        with _named(self.path), open(self.path, "rb", buffering=0) as file:
            return file.read()

    def stamp(self) -> list[Any]:
        """Return path, size and time of change of the file."""
        with _named(self.path):
            status = os.stat(self.path)
        return [self.path, status.st_size, status.st_mtime_ns]


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Let a name that no file can have (with a NUL, or half of a surrogate pair) be that of a missing file."""
    try:
        yield
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image inside a tar: `size` bytes of the file `path` from `offset` on."""

    path: str
    offset: int
    size: int
    member: str

    @property
    def name(self) -> str:
        """Last part of the member's name."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def where(self) -> str:
        """How messages name it."""
        return encodable(f"{self.path}: {self.member}")

    def stamp(self) -> list[Any]:
        """Return the place in the tar, and the tar's size and time of change."""
        status = os.stat(self.path)
        return [self.path, self.offset, self.size, status.st_size, status.st_mtime_ns]

    def read(self) -> bytes:
        """Return the member's bytes."""
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), self.size, self.offset)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its captions and labels."""

    key: str
    image: ImageRef
    extension: str  # of the image file: lower case, no dot
    captions: tuple[str, ...] = ()  # stripped, none empty
    labels: Mapping[str, int] = field(default_factory=dict)  # task -> class index
    empty_captions: int = 0  # dropped
    split: str = ""  # to which it belongs as the set is published, where the set has splits of its own


@dataclass(frozen=True, slots=True)
class Task:
    """A classification task that labels refer to; templates hold `{}` for the class name."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


class Samples(Iterable[Sample]):
    """An iterable that starts anew each time; list files are looked up in `folder`."""

    def __init__(
        self, make: Callable[[], Iterable[Sample]], folder: Path, splits: Sequence[str] = (), *, whole: bool = True
    ) -> None:
        """`make` gives the samples, always in the same order; `splits` are the set's own; not `whole`: a trial's."""
        self.make, self.folder, self.splits, self.whole = make, folder, tuple(splits), whole

    def __iter__(self) -> Iterator[Sample]:
        """From the first sample on."""
        return iter(self.make())


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar to be indexed in place."""

    path: Path
    sha256: str | None = None  # as an index file states it
    taken: Mapping[str, int] | None = None  # of a trial run: how many samples of each part are used, the first ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened set."""

    name: str  # how messages call it: `data` or `data.evaluation.<name>`
    samples: Samples
    captioned: bool  # whether a sample without a caption is a fault
    labelled: bool = False  # whether a sample without a label is a fault
    tasks: Mapping[str, Task] = field(default_factory=dict)
    choices: Sequence[Choice] = ()  # of a set of choices: the images are keys of its samples
    rejected: Sequence[tuple[str, str]] = ()  # (key, reason): left out by the set's own rules
    rows: Rows | None = None  # of the file that describes the set, and which of them are left out
    ignored: Mapping[str, int] = field(default_factory=dict)  # files of its folders that are not read, by ending
    image_folder: str = ""  # where the images lie that the rows name; empty: there are no rows, or not all are read
    all_samples: Callable[[], Iterable[Sample]] = tuple  # those too that are not in the chosen split
    tars: tuple[TarFile, ...] = ()  # not empty: `samples` lie in these tars, in this order
    facts: Mapping[str, Any] = field(default_factory=dict)  # format, licence, ...


def make_sample(key: str, image: ImageRef, extension: str, captions: Iterable[Any], **more: Any) -> Sample:
    """Make a sample whose captions are stripped; empty ones (and null) are dropped and counted."""
    stripped = [encodable(caption.strip()) if isinstance(caption, str) else "" for caption in captions]
    kept = tuple(caption for caption in stripped if caption)
    return Sample(encodable(key), image, extension, kept, empty_captions=len(stripped) - len(kept), **more)


def make_file_sample(folder: str, name: str, captions: Iterable[Any], **more: Any) -> Sample:
    """Make the sample of image file `name` in `folder`; its key is the file name without folder and extension."""
    key, extension = os.path.splitext(os.path.basename(name))
    return make_sample(key, FileImage(os.path.join(folder, name)), extension[1:].lower(), captions, **more)


def encodable(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold (half of a surrogate pair, a broken file name) as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def extension_of(name: str) -> str:
    """Return the lower-case extension without its dot; empty if there is none."""
    return os.path.splitext(name)[1][1:].lower()


def is_inside(folder: str, name: object) -> bool:
    """Return whether `name` is the name of a file below `folder`, to which it is relative."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    if name[0] != "/" and ".." not in name:
        return True
    top = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(top, name))
    return path != top and os.path.commonpath((top, path)) == top


def read_lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    """Return the lines of a UTF-8 text, stripped; empty ones are left out unless they are kept.

    Raises:
        UserError: The file is missing or is not UTF-8.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return [line for line in lines if line or keep_empty]
