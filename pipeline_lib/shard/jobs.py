"""One shard is one job: samples that pass triage written to a tar, or a tar that lies elsewhere indexed in place.

A job runs in a worker process and is the unit of resumption. When it is done it leaves its result in the work folder;
a job that is run again compares the result with its sources (names, sizes, times) and the shard with its hash, and
does nothing if both fit. Each byte is hashed while it is written. Two runs give the same bytes: order of the set, fixed
owner and time in the headers, image files byte for byte.
"""

from __future__ import annotations

import tarfile
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import IndexEntry, text_digest
from pipeline_lib.shard.images import image_format
from pipeline_lib.shard.records import Record, Result, read_result
from pipeline_lib.shard.triage import Rules, triage
from pipeline_lib.sources.parts import Splitter
from pipeline_lib.sources.samples import CLASS_TASK, Sample, TarFile, TarImage, encodable
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS, list_used, name_in_lists

REMEDY = "make room and run again, finished shards are kept"
_HEADER = 512  # bytes before a member of the tar
_COPY = 1 << 20  # bytes that the tar writer copies at a time
_LONGEST_KEY = 80  # a tar header holds names of 100 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """Write samples to one tar."""

    name: str
    rules: Rules
    part: str
    samples: tuple[Sample, ...]
    excluded: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (part, key) -> reason

    def plan(self) -> str:
        """Return a digest of everything that the shard's content depends on beyond the work folder's fingerprint."""
        return artifacts.digest([[_identity(sample) for sample in self.samples], sorted(self.excluded)])

    def files(self, record: Record) -> Iterator[tuple[Path, str]]:
        """Yield the files of a record with their hashes."""
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
        paths = [self.rules.output / self.part / name for name in (record.file, record.index)]
        with artifacts.hashed_file(paths[0], REMEDY) as tar, artifacts.hashed_file(paths[1], REMEDY) as index:
            self._write(tar, index, record)
        record.sha256, record.index_sha256, record.num_bytes = tar.hexdigest(), index.hexdigest(), tar.num_bytes
        if not record.num_samples:
            for path in paths:
                path.unlink()
        return Result([record])

    def _write(self, tar: artifacts.HashedFile, index: artifacts.HashedFile, record: Record) -> None:
        from webdataset.writer import TarWriter

        writer = TarWriter(tar, user="clip", group="clip", mtime=0, encoder=False, compress=False)
        # Straight to the file instead of through blocks of 10 kB, and with headers of exactly one block.
        sink: Any = tar
        writer.tarstream = tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY)
        for sample in self.samples:
            image = triage(sample, record, self.rules, self.excluded)
            if image is None:
                continue
            name, extension = escape_key(sample.key), _extension(sample, image.data)
            entry = _entry(sample, f"{name}.{extension}", writer.tarstream.offset + _HEADER, image.data)
            writer.write({"__key__": name, extension: image.data})
            writer.write({"__key__": name, **self._texts(sample)})
            index.write(entry.line().encode())
            record.add(entry, image.look)
        writer.close()

    def _texts(self, sample: Sample) -> dict[str, bytes]:
        """Return the members beside the image: everything as .json, and what readers of tars ask for by their endings.

        That is .txt, the first caption, without which open_clip's trainer takes no sample; .cls where there is one
        class task.
        """
        content = {"key": sample.key, "captions": sample.captions, "labels": sample.labels}
        texts = {"json": artifacts.canonical_json(content).encode()}
        if sample.captions:
            texts["txt"] = sample.captions[0].encode()
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
        """Return a digest of everything that the index depends on beyond the work folder's fingerprint."""
        status = self.tar.path.stat()
        claims = sorted(self.splitter.claims.items())
        taken = sorted((self.tar.taken or {}).items())
        stamp = [str(self.tar.path), status.st_size, status.st_mtime_ns, self.tar.sha256, taken]
        return artifacts.digest([stamp, claims, sorted(self.excluded)])

    def files(self, record: Record) -> Iterator[tuple[Path, str]]:
        """Yield the files of a record with their hashes."""
        yield self.tar.path, record.sha256
        yield self.rules.output / record.part / record.index, record.index_sha256

    def run(self) -> Result:
        """Write an index for each part.

        Raises:
            UserError: The tar is broken or is not the listed one, or the indexes cannot be written.
        """
        sha256 = artifacts.sha256_file(self.tar.path)
        if self.tar.sha256 not in (None, sha256):
            raise UserError(f"{self.tar.path}: SHA-256 is {sha256}, listed as {self.tar.sha256}; fetch it again")
        listing = list_used(self.tar, self.rules.tasks, self.splitter)
        names = {key: name_in_lists(key, self.splitter) for key, _ in listing.rejected}
        rejected = [(self.splitter.part_of(key, names[key]), (key, reason)) for key, reason in listing.rejected]
        images = [(key, name, f"{self.tar.path}: {key}") for key, name in names.items()]
        images += [(sample.key, sample.image.name, sample.image.where) for sample in listing.samples]
        named = [(line, image[2]) for image in images for line in self.splitter.lines_of(*image)]
        samples = [(self.splitter(sample), sample) for sample in listing.samples]
        parts = [part for part, _ in rejected] + [part for part, _ in samples]
        records = [
            self._index(part, sha256, [pair for p, pair in rejected if p == part], [s for p, s in samples if p == part])
            for part in sorted({part for part in parts if part is not None})
        ]
        return Result(records, parts.count(None), dict(listing.ignored), named)

    def _index(self, part: str, sha256: str, rejected: Sequence[tuple[str, str]], samples: Sequence[Sample]) -> Record:
        """Index the samples of one part."""
        index = f"{self.name.rsplit('/', 1)[1]}.jsonl"
        record = Record(self.name, part, str(self.tar.path), index, sha256)
        record.num_bytes = self.tar.path.stat().st_size
        record.quarantined += rejected
        lines = []
        for sample in samples:
            image = triage(sample, record, self.rules, self.excluded)
            if image is None:
                continue
            assert isinstance(sample.image, TarImage)
            entry = _entry(sample, encodable(sample.image.member), sample.image.offset, image.data)
            record.add(entry, image.look)
            lines.append(entry.line())
        if lines:
            with artifacts.hashed_file(self.rules.output / part / index, REMEDY) as file:
                file.write("".join(lines).encode())
            record.index_sha256 = file.hexdigest()
        return record


Job = FileJob | TarJob


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
        warnings.simplefilter("ignore")  # of images between one and two times the limit: look_at says it
        result = job.run()
    with artifacts.hashed_file(done, REMEDY) as file:
        file.write(result.to_json(plan).encode())
    return result


def _finished(job: Job, done: Path, plan: str) -> Result | None:
    """Return the result of an earlier run of the job if it is of this plan and its files are as it left them."""
    if not done.is_file():
        return None
    result = read_result(done.read_text(encoding="utf-8"), plan)
    for record in result.records if result else ():
        for path, sha256 in job.files(record) if record.num_samples else ():
            if not path.is_file() or artifacts.sha256_file(path) != sha256:
                return None
    return result


def escape_key(key: str) -> str:
    """Return `key` as a name in a tar that webdataset's rule (up to the first dot) keeps whole: ASCII, no dot or slash.

    >>> escape_key("a.b/c")
    'a%2Eb%2Fc'
    """
    escaped = urllib.parse.quote(key, safe="").replace(".", "%2E")
    if len(escaped) > _LONGEST_KEY:
        return f"{escaped[: _LONGEST_KEY - 33]}~{text_digest(key).hex()}"
    return escaped


def _extension(sample: Sample, data: bytes) -> str:
    """Return the file's own extension, or its format where readers of tars would not know an image by it."""
    return sample.extension if sample.extension in IMAGE_EXTENSIONS else image_format(data)


def _identity(sample: Sample) -> list[Any]:
    try:
        stamp = sample.image.stamp()
    except OSError:
        stamp = []
    stamp = [encodable(value) if isinstance(value, str) else value for value in stamp]
    return [sample.key, sample.captions, dict(sample.labels), stamp]


def _entry(sample: Sample, member: str, offset: int, data: bytes) -> IndexEntry:
    digest = artifacts.sha256_bytes(data)
    return IndexEntry(sample.key, member, offset, len(data), digest, sample.captions, dict(sample.labels))
