"""Tars that others wrote (img2dataset, webdataset, clip-benchmark), listed where they lie.

Only headers and small texts are read; an image becomes (file, offset, size). A tar may be hostile: members with an
absolute path or `..`, links and devices, pickles and oversized texts are counted and ignored, and nothing is ever
unpickled or written to a path that a tar names.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import (
    CLASS_TASK,
    Sample,
    Samples,
    Source,
    TarFile,
    TarImage,
    Task,
    extension_of,
    make_sample,
)

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "joblib", "npy", "npz"})  # what careless readers unpickle
MAX_TEXT_BYTES = 1_000_000  # a caption, class or JSON member


@dataclass(slots=True)
class TarListing:
    """What a tar holds, from its headers and small texts; no image was read."""

    samples: list[Sample] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    ignored: Counter[str] = field(default_factory=Counter)  # members by reason


def find_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder, numbers in names by value: 2.tar before 10.tar."""
    found = list(folder.glob("*.tar")) if folder.is_dir() else []
    return sorted(found, key=lambda path: [part.zfill(20) for part in re.findall(r"\d+|\D+", path.name)])


def make_tar_source(place: Place, tars: Sequence[TarFile], tasks: Mapping[str, Task]) -> Source:
    """Make the `Source` of samples that lie in `tars`; with `tasks` each needs a label, without them a caption."""
    chosen = tuple(tars if place.limit is None else _first_samples(tars, place.limit))

    def make() -> Iterator[Sample]:
        for tar in chosen:
            yield from list_tar(tar.path, tasks, tar.limit).samples

    samples = Samples(make, place.folder, place.limit)
    return Source(name=place.name, samples=samples, captioned=not tasks, labelled=bool(tasks), tasks=tasks, tars=chosen)


def _first_samples(tars: Iterable[TarFile], limit: int) -> Iterator[TarFile]:
    """Yield as many tars as the first `limit` samples fill, the last of them cut."""
    for tar in tars:
        if limit <= 0:
            return
        yield TarFile(tar.path, tar.sha256, limit)
        listing = list_tar(tar.path, limit=limit)
        limit -= len(listing.samples) + len(listing.rejected)


def split_member(name: str) -> tuple[str, str] | None:
    """Split a member's name by webdataset's rule: the key ends at the first dot of the base name.

    >>> split_member("a.b/c.seg.PNG")
    ('a.b/c', 'seg.png')
    """
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match[1], match[2].lower()) if match else None


def list_tar(path: Path, tasks: Mapping[str, Task] | None = None, limit: int | None = None) -> TarListing:
    """List the samples of an uncompressed tar: adjacent members of one key make one sample.

    Raises:
        UserError: It is no tar, is compressed, or ends in the middle of a member.
    """
    listing = TarListing()
    with _open_tar(path) as tar:
        for key, members in islice(_groups(tar, path, listing.ignored), limit):
            found = _tar_sample(key, members, path, tasks or {})
            if isinstance(found, Sample):
                listing.samples.append(found)
            else:
                listing.rejected.append((key, found))
        if limit is None and tar.offset >= path.stat().st_size:
            listing.ignored["missing end of the archive"] += 1  # its writer was killed between two members
    return listing


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not an uncompressed tar ({error}); tars are read in place, so unpack .tar.gz first"
        ) from None


def _groups(
    tar: tarfile.TarFile, path: Path, ignored: Counter[str]
) -> Iterator[tuple[str, dict[str, TarImage | bytes]]]:
    """Yield (key, {extension: image reference or text}) of adjacent members; only what may be of a sample is read."""
    current, members = None, dict[str, TarImage | bytes]()
    for info in _members(tar, path):
        fault = _fault(info)
        parts = None if fault else split_member(info.name)
        if fault:
            ignored[fault] += 1
        if parts is None:
            continue
        key, extension = parts
        if key != current:
            if current is not None:
                yield current, members
            current, members = key, {}
        if extension in members:
            raise UserError(f"{path}: member {info.name} stands twice; write the tar again")
        if extension in IMAGE_EXTENSIONS:
            members[extension] = TarImage(str(path), info.offset_data, info.size, info.name)
        elif extension in ("txt", "json", "cls"):
            content = tar.extractfile(info)
            members[extension] = content.read() if content else b""
    if current is not None:
        yield current, members


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        while (info := tar.next()) is not None:
            yield info
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
    except tarfile.TarError as error:
        raise UserError(f"{path}: broken tar ({error}); fetch it again") from None


def _fault(info: tarfile.TarInfo) -> str | None:
    """Return why a member must not be touched, or None."""
    extension = extension_of(info.name)
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        return "link or device"
    if info.name.startswith("/") or ".." in info.name.split("/") or "\\" in info.name:
        return "unsafe path"
    if extension in PICKLES:
        return "pickle"
    if extension not in IMAGE_EXTENSIONS and info.size > MAX_TEXT_BYTES:
        return "oversized"
    return None


def _tar_sample(
    key: str, members: Mapping[str, TarImage | bytes], path: Path, tasks: Mapping[str, Task]
) -> Sample | str:
    """Return a sample, or the reason why there is none."""
    images = [(extension, image) for extension, image in members.items() if isinstance(image, TarImage)]
    if not images:
        return "no image in the tar"
    extension, image = images[0]
    try:
        captions = _tar_captions(members)
        labels = {}
        if tasks and "cls" in members:
            labels[CLASS_TASK] = int(_text(members, "cls"))
    except (ValueError, RecursionError) as error:
        return f"unreadable text ({error})"
    for task, label in labels.items():
        if not 0 <= label < len(tasks[task].classnames):
            raise UserError(f"{path}: {key}.cls is {label}, but there are {len(tasks[task].classnames)} class names")
    return make_sample(key, image, extension, captions, labels=labels)


def _tar_captions(members: Mapping[str, TarImage | bytes]) -> list[Any]:
    """Return `captions` of the json, else the lines of the txt, else `caption` of the json.

    A txt that is the json's `caption` is one caption, whatever lines it has.
    """
    content = json.loads(_text(members, "json")) if "json" in members else {}
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise ValueError("json is neither an object nor a list")
    if isinstance(content.get("captions"), list):
        return content["captions"]
    if "txt" in members:
        text = _text(members, "txt").strip()
        caption = content.get("caption")
        return [text] if isinstance(caption, str) and caption.strip() == text else text.split("\n")
    return [content["caption"]] if "caption" in content else []


def _text(members: Mapping[str, TarImage | bytes], extension: str) -> str:
    content = members[extension]
    assert isinstance(content, bytes)
    return content.decode("utf-8")
