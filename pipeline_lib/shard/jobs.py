"""One shard is one job: validated samples written to a tar, or a tar that lies elsewhere indexed in place.

A job runs in a worker process and is the unit of resumption. When it is done it leaves a record in the work folder;
a job that is run again compares the record with its sources (names, sizes, times) and the shard with its hash, and
does nothing if both fit. Each byte is hashed while it is written. Two runs give the same bytes: order of the set, fixed
owner and time in the headers, image files byte for byte.

An image is checked by its header, its number of pixels and its end (a file that was cut is decoded as a whole); that
every pixel decodes is the business of the stage that decodes. What fails is quarantined: named, with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from PIL import Image

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import IndexEntry, text_digest
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.samples import CLASS_TASK, Sample, Splitter, TarFile, TarImage, Task
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS, list_tar

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
_HEADER = 512  # bytes before a member of the tar
_CHUNK = 1 << 20  # bytes hashed and written at a time
_LONGEST_KEY = 80  # a tar header holds names of 100 bytes


# --- one image --------------------------------------------------------------------------------------------------


def image_fault(data: bytes, max_pixels: int) -> str | None:
    """Why `data` is no acceptable image file, or None.

    The header must open and hold at most `max_pixels`, checksums (PNG) must fit, and the file must end as its format
    does; one that does not is decoded as a whole, since harmless bytes may follow the end.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return f"{width} x {height} pixels, more than shard.max_image_pixels"
            kind = image.format or ""
            image.verify()
        if not _ends_well(data, kind):
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
    except Image.DecompressionBombError:
        return "more pixels than shard.max_image_pixels"
    except Image.UnidentifiedImageError:
        return "not an image in a known format"
    except Exception as error:  # decoders meet broken files with almost any exception
        return f"does not decode ({error})"
    return None


def _ends_well(data: bytes, kind: str) -> bool:
    if kind == "WEBP":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return kind in _LAST_BYTES and data.endswith(_LAST_BYTES[kind])


def escape_key(key: str) -> str:
    """`key` as a name in a tar that webdataset's rule (up to the first dot) keeps whole: ASCII, no dot, no slash.

    >>> escape_key("a.b/c")
    'a%2Eb%2Fc'
    """
    escaped = urllib.parse.quote(key, safe="").replace(".", "%2E")
    if len(escaped) > _LONGEST_KEY:
        return f"{escaped[: _LONGEST_KEY - 33]}~{text_digest(key).hex()}"
    return escaped


# --- one shard: a job for a worker ------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """What one shard of one part holds, as it goes into the manifest and the work folder."""

    job: str
    part: str
    file: str
    index: str
    sha256: str = ""
    index_sha256: str = ""
    num_bytes: int = 0
    num_samples: int = 0
    num_captions: int = 0
    max_caption_chars: int = 0
    dropped_captions: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    excluded: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    pictures: bytearray = field(default_factory=bytearray)  # 16 bytes of the hash of each image, in order
    captions: bytearray = field(default_factory=bytearray)  # 16 bytes of the digest of each caption, in order

    @property
    def read(self) -> int:
        """Samples of the source, whatever became of them."""
        return self.num_samples + len(self.quarantined) + len(self.excluded)

    def add(self, entry: IndexEntry) -> None:
        """Count a sample that is used."""
        self.num_samples += 1
        self.num_captions += len(entry.captions)
        self.max_caption_chars = max(self.max_caption_chars, *map(len, entry.captions), 0)
        self.pictures += picture_digest(entry.sha256)
        for caption in entry.captions:
            self.captions += text_digest(caption)


def picture_digest(sha256: str) -> bytes:
    """The 16 bytes by which pictures are compared."""
    return bytes.fromhex(sha256[:32])


@dataclass(slots=True)
class Result:
    """What a job returns."""

    records: list[Record] = field(default_factory=list)
    in_no_part: int = 0
    ignored: dict[str, int] = field(default_factory=dict)  # members of a tar, by reason
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all jobs of a set share."""

    work: Path
    settings: ShardSettings
    captioned: bool
    tasks: Mapping[str, Task]

    @property
    def output(self) -> Path:
        """What will be published."""
        return self.work / "output"

    def fault(self, sample: Sample) -> str | None:
        """Why a sample is quarantined before its image is read, or None."""
        if self.captioned and not sample.captions:
            return "no caption" if sample.empty_captions == 0 else "only empty captions"
        if any(len(caption) > self.settings.max_caption_chars for caption in sample.captions):
            return "a caption is longer than shard.max_caption_chars"
        return None

    def read(self, sample: Sample) -> tuple[bytes, str | None]:
        """The image file's bytes, and why the sample is quarantined, or None."""
        reason = self.fault(sample)
        if reason:
            return b"", reason
        try:
            if sample.image.size > self.settings.max_image_bytes:
                return b"", f"{sample.image.size} bytes, more than shard.max_image_bytes"
            data = sample.image.read()
        except FileNotFoundError:
            return b"", f"no such file: {sample.image.where}"
        except OSError as error:
            return b"", f"cannot be read ({error.strerror}): {sample.image.where}"
        return data, image_fault(data, self.settings.max_image_pixels) if data else "an empty file"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """Write samples to one tar."""

    name: str
    rules: Rules
    part: str
    samples: tuple[Sample, ...]
    excluded: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (part, key) -> reason

    def plan(self) -> str:
        """A digest of everything that the shard's content depends on beyond the work folder's fingerprint."""
        return artifacts.digest([[_identity(sample) for sample in self.samples], sorted(self.excluded)])

    def files(self, record: Record) -> Iterator[tuple[Path, str]]:
        """The files of a record with their hashes."""
        folder = self.rules.output / record.part
        yield folder / record.file, record.sha256
        yield folder / record.index, record.index_sha256

    def run(self) -> Result:
        """Write the tar and its index.

        Raises:
            UserError: They cannot be written (a full disk).
        """
        number = self.name.rsplit("/", 1)[1]
        record = Record(self.name, self.part, f"{number}.tar", f"{number}.jsonl")
        folder = self.rules.output / self.part
        with hashed_file(folder / record.file) as tar, hashed_file(folder / record.index) as index:
            self._write(tar, index, record)
        record.sha256, record.index_sha256, record.num_bytes = tar.hexdigest(), index.hexdigest(), tar.num_bytes
        if not record.num_samples:
            (folder / record.file).unlink()
            (folder / record.index).unlink()
        return Result([record])

    def _write(self, tar: HashedFile, index: HashedFile, record: Record) -> None:
        from webdataset.writer import TarWriter

        writer = TarWriter(tar, user="clip", group="clip", mtime=0, encoder=False, compress=False)
        # Straight to the file instead of through blocks of 10 kB, and with headers of exactly one block.
        sink: Any = tar
        writer.tarstream = tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_CHUNK)
        for sample in self.samples:
            record.dropped_captions += sample.empty_captions
            if (self.part, sample.key) in self.excluded:
                record.excluded.append((sample.key, self.excluded[self.part, sample.key]))
                continue
            data, reason = self.rules.read(sample)
            if reason:
                record.quarantined.append((sample.key, reason))
                continue
            name, extension = escape_key(sample.key), _extension(sample, data)
            entry = _entry(sample, f"{name}.{extension}", writer.tarstream.offset + _HEADER, data)
            writer.write({"__key__": name, extension: data})
            writer.write({"__key__": name, **self._texts(sample)})
            index.write(entry.line().encode())
            record.add(entry)
        writer.close()

    def _texts(self, sample: Sample) -> dict[str, bytes]:
        """The members beside the image: everything as .json, and .cls where there is one class task."""
        content = {"key": sample.key, "captions": sample.captions, "labels": sample.labels}
        texts = {"json": artifacts.canonical_json(content).encode()}
        if tuple(self.rules.tasks) == (CLASS_TASK,) and CLASS_TASK in sample.labels:
            texts["cls"] = str(sample.labels[CLASS_TASK]).encode()
        return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TarJob:
    """Index one tar in place, for all parts that its samples belong to."""

    name: str
    rules: Rules
    tar: TarFile
    splitter: Splitter
    excluded: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (part, key) -> reason

    def plan(self) -> str:
        """A digest of everything that the index depends on beyond the work folder's fingerprint."""
        status = self.tar.path.stat()
        claims = sorted(self.splitter.claims.items())
        stamp = [str(self.tar.path), status.st_size, status.st_mtime_ns, self.tar.sha256, self.tar.limit]
        return artifacts.digest([stamp, claims, sorted(self.excluded)])

    def files(self, record: Record) -> Iterator[tuple[Path, str]]:
        """The files of a record with their hashes."""
        yield self.tar.path, record.sha256
        yield self.rules.output / record.part / record.index, record.index_sha256

    def run(self) -> Result:
        """Write the indexes.

        Raises:
            UserError: The tar is broken or is not the listed one, or the indexes cannot be written.
        """
        sha256 = artifacts.sha256_file(self.tar.path)
        if self.tar.sha256 not in (None, sha256):
            raise UserError(f"{self.tar.path}: SHA-256 is {sha256}, listed as {self.tar.sha256}; fetch it again")
        listing = list_tar(self.tar.path, self.rules.tasks, self.tar.limit)
        result, records, lines = Result(ignored=dict(listing.ignored)), dict[str, Record](), dict[str, list[str]]()
        index = f"{self.name.rsplit('/', 1)[1]}.jsonl"

        def record_of(part: str) -> Record:
            return records.setdefault(part, Record(self.name, part, str(self.tar.path), index, sha256))

        for key, reason in listing.rejected:
            part = self.splitter.part_of(key)
            if part is None:
                result.in_no_part += 1
            else:
                record_of(part).quarantined.append((key, reason))
        for sample in listing.samples:
            part = self.splitter(sample)
            if part is None:
                result.in_no_part += 1
                continue
            line = self._examine(sample, record_of(part))
            if line is not None:
                lines.setdefault(part, []).append(line)
        for part, record in records.items():
            record.num_bytes = self.tar.path.stat().st_size
            if record.num_samples:
                with hashed_file(self.rules.output / part / index) as file:
                    file.write("".join(lines[part]).encode())
                record.index_sha256 = file.hexdigest()
        result.records = [records[part] for part in sorted(records)]
        return result

    def _examine(self, sample: Sample, record: Record) -> str | None:
        """The index line of a sample, or None if it is not used; counted in `record` either way."""
        record.dropped_captions += sample.empty_captions
        if (record.part, sample.key) in self.excluded:
            record.excluded.append((sample.key, self.excluded[record.part, sample.key]))
            return None
        data, reason = self.rules.read(sample)
        if reason:
            record.quarantined.append((sample.key, reason))
            return None
        image = sample.image
        assert isinstance(image, TarImage)
        entry = _entry(sample, image.member, image.offset, data)
        record.add(entry)
        return entry.line()


Job = FileJob | TarJob


def _extension(sample: Sample, data: bytes) -> str:
    """The file's own extension, or its format where readers of tars would not know an image by it."""
    if sample.extension in IMAGE_EXTENSIONS:
        return sample.extension
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return (image.format or "").lower()


def _identity(sample: Sample) -> list[Any]:
    try:
        stamp = sample.image.stamp()
    except OSError:
        stamp = []
    return [sample.key, sample.captions, dict(sample.labels), stamp]


def _entry(sample: Sample, member: str, offset: int, data: bytes) -> IndexEntry:
    digest = artifacts.sha256_bytes(data)
    return IndexEntry(sample.key, member, offset, len(data), digest, sample.captions, dict(sample.labels))


class HashedFile:
    """A file that hashes what is written to it, a megabyte at a time; after `abandon`, what is written goes nowhere."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        """`path` is what a message names."""
        self._file: IO[bytes] | None = file
        self._path = path
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
        """Bytes taken so far."""
        return self.num_bytes + len(self._pending)

    def flush(self) -> None:
        """Hash and write what was taken."""
        if self._file is not None:
            self._hash.update(self._pending)
            self.num_bytes += len(self._pending)
            try:
                self._file.write(self._pending)
            except OSError as error:
                raise _cannot_write(self._path, error) from None
        self._pending.clear()

    def abandon(self) -> None:
        """Ignore whatever a writer still wants to write when it is thrown away."""
        self._file = None

    def hexdigest(self) -> str:
        """SHA-256 of everything written."""
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """Write `path` atomically through a `HashedFile`.

    Raises:
        UserError: It cannot be written; nothing of it remains.
    """
    try:
        with artifacts.atomic_open(path) as file:
            hashed = HashedFile(file, path)
            try:
                yield hashed
                hashed.flush()
            except BaseException:
                hashed.abandon()
                raise
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); make room and run again, finished shards are kept")


def run_job(job: Job) -> Result:
    """Run a job in a worker, unless its finished shard lies in the work folder and is still right."""
    done = job.rules.work / "done" / f"{job.name}.json"
    plan = job.plan()
    finished = _finished(job, done, plan)
    if finished is not None:
        return finished
    done.unlink(missing_ok=True)
    Image.MAX_IMAGE_PIXELS = job.rules.settings.max_image_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images between one and two times the limit: image_fault says it
        result = job.run()
    with hashed_file(done) as file:
        file.write(json.dumps({"plan": plan, **dataclasses.asdict(result)}, default=bytearray.hex).encode())
    return result


def _finished(job: Job, done: Path, plan: str) -> Result | None:
    if not done.is_file():
        return None
    content = json.loads(done.read_text(encoding="utf-8"))
    if content["plan"] != plan:
        return None
    records = [_restored(record) for record in content["records"]]
    for record in records:
        for path, sha256 in job.files(record) if record.num_samples else ():
            if not path.is_file() or artifacts.sha256_file(path) != sha256:
                return None
    return Result(records, content["in_no_part"], content["ignored"], resumed=True)


def _restored(fields: Mapping[str, Any]) -> Record:
    """A record as it was before it became JSON."""
    pairs = {name: [(key, reason) for key, reason in fields[name]] for name in ("quarantined", "excluded")}
    digests = {name: bytearray.fromhex(fields[name]) for name in ("pictures", "captions")}
    return Record(**{**fields, **pairs, **digests})
