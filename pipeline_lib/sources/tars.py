"""Tars that others wrote (img2dataset, webdataset, clip-benchmark), listed where they lie.

Only headers and small texts are read; an image becomes (file, offset, size). A tar may be hostile: members with an
absolute path or `..`, links and devices, pickles and oversized texts are counted and ignored, and nothing is ever
unpickled or written to a path that a tar names.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.parts import Cut, Splitter
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import (
    CLASS_TASK,
    Sample,
    Samples,
    Source,
    TarFile,
    TarImage,
    Task,
    encodable,
    extension_of,
    make_sample,
)

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "joblib", "npy", "npz"})  # what careless readers unpickle
MAX_TEXT_BYTES = 1_000_000  # a caption, class or JSON member
SORT = "those of a sample must stand together: sort them by name, as `tar --sort=name -cf new.tar folder` writes them"


@dataclass(slots=True)
class TarListing:
    """What a tar holds, from its headers and small texts; no image was read."""

    samples: list[Sample] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    ignored: Counter[str] = field(default_factory=Counter)  # members by reason


@dataclass(slots=True)
class Group:
    """Adjacent members of one key; of what no sample needs, only the endings of the first ones."""

    key: str
    images: dict[str, TarImage] = field(default_factory=dict)  # by extension
    texts: dict[str, bytes] = field(default_factory=dict)  # by extension
    others: list[str] = field(default_factory=list)


def find_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder, numbers in names by value: 2.tar before 10.tar."""
    found = list(folder.glob("*.tar")) if os.path.isdir(folder) else []
    return sorted(found, key=lambda path: [part.zfill(20) for part in re.findall(r"\d+|\D+", path.name)])


def make_tar_source(place: Place, tars: Sequence[TarFile], tasks: Mapping[str, Task]) -> Source:
    """Make the `Source` of samples that lie in `tars`; with `tasks` each needs a label, without them a caption."""
    splitter = Splitter(place.parts, place.folder, place.name)
    chosen = tuple(tars if place.limit is None else _first_tars(tars, tasks, Cut.begin(splitter, place.limit)))

    def make() -> Iterator[Sample]:
        for tar in chosen:
            yield from list_used(tar, tasks, splitter).samples

    samples = Samples(make, place.folder, whole=place.limit is None)
    return Source(name=place.name, samples=samples, captioned=not tasks, labelled=bool(tasks), tasks=tasks, tars=chosen)


def _first_tars(tars: Iterable[TarFile], tasks: Mapping[str, Task], cut: Cut) -> Iterator[TarFile]:
    """Yield the tars until the first samples of each part are found, each with how many it has of them."""
    for tar in tars:
        if cut.is_full:
            return
        before = dict(cut.left)
        list_tar(tar.path, tasks, cut)
        yield TarFile(tar.path, tar.sha256, {part: room - cut.left[part] for part, room in before.items()})


def list_used(tar: TarFile, tasks: Mapping[str, Task], splitter: Splitter) -> TarListing:
    """List the samples of a source's tar: all, or those that a trial run takes."""
    return list_tar(tar.path, tasks, None if tar.taken is None else Cut(splitter, dict(tar.taken)))


def name_in_lists(key: str, splitter: Splitter) -> str:
    """Return a file name by which a list names a sample of which no image is known; empty if none does."""
    names = [f"{key}.{extension}" for extension in sorted(IMAGE_EXTENSIONS)]
    return next((name for name in names if splitter.lines_of(key, name)), "")


def split_member(name: str) -> tuple[str, str] | None:
    """Split a member's name by webdataset's rule: the key ends at the first dot of the base name.

    >>> split_member("a.b/c.seg.PNG")
    ('a.b/c', 'seg.png')
    """
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match[1], match[2].lower()) if match else None


def list_tar(path: Path, tasks: Mapping[str, Task] | None = None, cut: Cut | None = None) -> TarListing:
    """List the samples of an uncompressed tar: adjacent members of one key make one sample.

    With `cut` only the samples that it takes, broken ones among them, and it counts them.

    Raises:
        UserError: It is no tar, is compressed, is not sorted by key, or ends in the middle of a member.
    """
    listing = TarListing()
    with _open_tar(path) as tar:
        try:
            for group in _groups(tar, path, listing.ignored, "cls" if tasks else ""):
                if cut and cut.is_full:
                    break
                found = _tar_sample(group, path, tasks or {})
                if cut and not cut.takes(_part_of(encodable(group.key), found, cut.splitter)):
                    continue
                if isinstance(found, Sample):
                    listing.samples.append(found)
                    listing.ignored.update(["second image of a sample"] * (len(group.images) - 1))
                else:
                    listing.rejected.append((encodable(group.key), found))
        except tarfile.TarError as error:
            raise UserError(f"{path}: broken tar ({error}); fetch it again") from None
        if cut is None and tar.offset >= path.stat().st_size:
            listing.ignored["missing end of the archive"] += 1  # its writer was killed between two members
    return listing


def _part_of(key: str, found: Sample | str, splitter: Splitter) -> str | None:
    """Return the part of a sample, or of one that is broken, which only its key tells."""
    return splitter(found) if isinstance(found, Sample) else splitter.part_of(key, name_in_lists(key, splitter))


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not an uncompressed tar ({error}); tars are read in place, so unpack .tar.gz first"
        ) from None


def _groups(tar: tarfile.TarFile, path: Path, ignored: Counter[str], label: str) -> Iterator[Group]:
    """Yield the groups of a tar; only what may be of a sample is read: images by place, txt, json and `label`."""
    group: Group | None = None
    seen: dict[str, frozenset[str]] = {}  # extensions of the groups that are over, by key
    for info in _members(tar):
        fault, parts = _fault(info), split_member(info.name)
        if fault or parts is None:
            ignored[fault or not_read(info.name)] += 1
            continue
        key, extension = parts
        if group is None or key != group.key:
            if group is not None:
                seen[group.key] = frozenset((*group.images, *group.texts))
                yield group
            group = Group(key)
        if extension in group.images or extension in group.texts or extension in seen.get(key, ()):
            raise UserError(f"{path}: member {info.name} stands twice; write the tar again")
        if key in seen:
            raise UserError(f"{path}: member {info.name} stands apart from others of its sample; {SORT}")
        if extension in IMAGE_EXTENSIONS:
            group.images[extension] = TarImage(str(path), info.offset_data, info.size, info.name)
        elif extension in ("txt", "json", label):
            content = tar.extractfile(info)
            group.texts[extension] = content.read() if content else b""
        else:
            ignored[not_read(info.name)] += 1
            group.others += [extension] * (len(group.others) < 3)
    if group is not None:
        yield group


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members but folders."""
    while (info := tar.next()) is not None:
        if not info.isdir():
            yield info
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen


def not_read(name: str) -> str:
    """Return what a file that no sample needs is counted as: by its ending."""
    ending = extension_of(name)
    return f"not read: .{ending}" if re.fullmatch("[a-z0-9]{1,9}", ending) else "not read: no usual ending"


def _fault(info: tarfile.TarInfo) -> str | None:
    """Return why a member must not be touched, or None."""
    extension = extension_of(info.name)
    if not info.isreg() or info.issparse():
        return "link or device"
    if info.name.startswith("/") or ".." in info.name.split("/") or "\\" in info.name:
        return "unsafe path"
    if extension in PICKLES:
        return "pickle"
    if extension not in IMAGE_EXTENSIONS and info.size > MAX_TEXT_BYTES:
        return "oversized"
    return None


def _tar_sample(group: Group, path: Path, tasks: Mapping[str, Task]) -> Sample | str:
    """Return a sample, or the reason why there is none."""
    if not group.images:
        return _no_image(group)
    extension, image = next(iter(group.images.items()))
    try:
        captions = _tar_captions(group.texts)
        label = group.texts["cls"].decode().strip() if "cls" in group.texts else ""
    except (ValueError, RecursionError) as error:
        return f"unreadable text ({error})"
    labels = {}
    if "cls" in group.texts:
        if not re.fullmatch("-?[0-9]{1,9}", label):
            return f"cls is {label[:40]!r}, not the number of one class"
        labels[CLASS_TASK] = int(label)
    for task, number in labels.items():
        if not 0 <= number < len(tasks[task].classnames):
            names = len(tasks[task].classnames)
            raise UserError(f"{path}: {group.key}.cls is {number}, but there are {names} class names")
    return make_sample(group.key, image, extension, captions, labels=labels)


def _no_image(group: Group) -> str:
    """Return why a group without an image has none."""
    endings = ", ".join(f".{ending[:20]}" for ending in (*group.texts, *group.others))
    dotted = any("." in ending and extension_of(ending) in IMAGE_EXTENSIONS for ending in group.others)
    why = "; a key ends at the first dot of the name, so write another sign for it" if dotted else ""
    return f"no image in the tar (its members end in {endings}{why})"


def _tar_captions(texts: Mapping[str, bytes]) -> list[Any]:
    """Return `captions` of the json, else the lines of the txt, else `caption` of the json.

    A txt that is the json's `caption` is one caption, whatever lines it has.
    """
    content = json.loads(texts["json"].decode()) if "json" in texts else {}
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise ValueError("json is neither an object nor a list")
    if isinstance(content.get("captions"), list):
        return content["captions"]
    if "txt" in texts:
        text = texts["txt"].decode().strip()
        caption = content.get("caption")
        return [text] if isinstance(caption, str) and caption.strip() == text else text.split("\n")
    return [content["caption"]] if "caption" in content else []
