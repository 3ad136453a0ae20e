"""Writes data/shards: every part of the data and every evaluation set, by a pool of processes, one shard a job.

Jobs come as a lazy stream, so that neither images nor shards pile up in memory. Everything is built in the work folder
and published by rename when all of it is in order; a killed run, started again, keeps its finished shards (see
`shard_jobs`). Above `shard.max_bad_share` quarantined samples the stage fails.

No picture is in two parts that must not share one: first `refine`, then `val`, then every other part and evaluation set
lose the pictures (by content hash) that the base or an earlier training part was trained on.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import shutil
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib import artifacts, config, known_answers, runtime, shard_jobs, sources
from pipeline_lib.errors import UserError
from pipeline_lib.samples import Sample, Source, Splitter, check_keys
from pipeline_lib.shard_jobs import FileJob, Job, Record, Result, Rules, TarJob
from pipeline_lib.shards import STAGE, TRAINING_PARTS, check_names, read_index

log = logging.getLogger(__name__)

QUARANTINE, FILTERED = LISTS = ("quarantine.jsonl", "filtered.jsonl")  # {"part", "key", "reason"} a line
_NAMED = 5  # bad samples named in a message


# --- all jobs ---------------------------------------------------------------------------------------------------


def _start_worker() -> None:
    """A worker ends with its parent, leaves Ctrl-C to it, and does without torch, which webdataset would import."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runtime.leave_ctrl_c_to_parent()
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed; an unfinished file is removed by the next run


@dataclass(frozen=True, slots=True)
class Workers:
    """A pool of clean processes (no threads, locks or files of ours), started as they are needed."""

    pool: ProcessPoolExecutor
    count: int

    def run(self, jobs: Iterable[Job], bar: Any) -> Iterator[Result]:
        """Results in the order of the jobs; only a few jobs are drawn ahead of the slowest."""
        waiting: deque[Future[Result]] = deque()

        def next_result() -> Result:
            result = waiting.popleft().result()
            if runtime.stop_requested():
                raise runtime.Stopped
            bar.update(sum(record.read for record in result.records))
            return result

        for job in jobs:
            waiting.append(self.pool.submit(shard_jobs.run_job, job))
            if len(waiting) > 2 * self.count:
                yield next_result()
        while waiting:
            yield next_result()


@contextmanager
def start_workers(count: int | None = None) -> Iterator[Workers]:
    """Workers, by default one per core.

    Raises:
        UserError: One of them was killed.
    """
    available = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in available else "spawn")
    if "forkserver" in available:
        context.set_forkserver_preload([__name__])
    count = count or runtime.available_cores()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        yield Workers(pool, count)
    except BrokenProcessPool:
        if runtime.stop_requested():
            raise runtime.Stopped from None
        raise UserError(
            "shard: a worker process was killed, probably for lack of memory; run again, finished shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(slots=True, kw_only=True)
class SetWriter:
    """One source and its parts on the way into shards."""

    source: Source
    splitter: Splitter
    rules: Rules
    known_answers: Mapping[str, Any] = field(default_factory=dict)  # by part, see `known_answers.read`
    records: dict[str, list[Record]] = field(default_factory=dict)
    in_no_part: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    resumed: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts to write; `base` is the base stage's own."""
        return tuple(part for part in self.splitter.parts if part != "base")

    def check_keys(self) -> None:
        """Refuse doubled keys: before anything is written, or (tars) from the indexes.

        Raises:
            UserError: A key stands twice.
        """
        check_keys(self._indexed if self.source.tars else self._listed, self.source.name)

    def _listed(self) -> Iterator[tuple[str, str]]:
        return ((sample.key, sample.image.where) for sample in self.source.samples)

    def _indexed(self) -> Iterator[tuple[str, str]]:
        for record in (record for part in self.parts for record in self.records[part]):
            if record.num_samples:
                for entry in read_index(self.rules.output / record.part / record.index):
                    yield entry.key, f"{record.file}: {entry.member}"

    def jobs(self) -> Iterator[Job]:
        """All jobs in order; the same ones each time."""
        if self.source.tars:
            for number, tar in enumerate(self.source.tars):
                yield TarJob(name=f"{self.source.name}/{number:05d}", rules=self.rules, tar=tar, splitter=self.splitter)
            return
        pending: dict[str, list[Sample]] = {part: [] for part in self.parts}
        written: Counter[str] = Counter()
        self.in_no_part = 0
        for sample in self.source.samples:
            part = self.splitter(sample)
            if part is None:
                self.in_no_part += 1
            elif part in pending:
                pending[part].append(sample)
                if len(pending[part]) == self.rules.settings.samples_per_shard:
                    yield self._file_job(part, written, pending)
        for part in self.parts:
            if pending[part]:
                yield self._file_job(part, written, pending)

    def _file_job(self, part: str, written: Counter[str], pending: dict[str, list[Sample]]) -> FileJob:
        name = f"{part}/{written[part]:05d}"
        samples = tuple(pending[part])
        written[part] += 1
        pending[part] = []
        return FileJob(name=name, rules=self.rules, part=part, samples=samples)

    def write(self, workers: Workers, progress: bool) -> None:
        """Run all jobs.

        Raises:
            UserError: A key stands twice, the set or a part is empty, or too many samples are bad.
        """
        self.records = {part: [] for part in self.parts}
        if not self.source.tars:
            self.check_keys()
        with runtime.progress(None, label=f"shard {self.source.name}", enabled=progress, unit=" images") as bar:
            for result in workers.run(self.jobs(), bar):
                self._take(result)
        if self.source.tars:
            self.check_keys()
        if self.resumed:
            log.info("%s: resumed, %d shards were finished", self.source.name, self.resumed)
        if next(iter(self.source.samples), None) is None:
            raise UserError(f"{self.source.name}: the set in {self.source.samples.folder} holds no samples")
        for part in self.parts:
            self._check_bad(part)

    def _take(self, result: Result) -> None:
        for record in result.records:
            if record.part in self.records:
                self.records[record.part].append(record)
        self.ignored.update(result.ignored)
        self.resumed += result.resumed
        if self.source.tars:
            self.in_no_part += result.in_no_part

    def _check_bad(self, part: str) -> None:
        bad = [pair for record in self.records[part] for pair in record.quarantined]
        read = sum(record.read for record in self.records[part])
        if not read:
            raise UserError(f"{self.source.name}: part `{part}` is empty; give it a larger share or a list that fits")
        named = "; ".join(f"{key}: {reason}" for key, reason in bad[:_NAMED]) + ("; ..." if len(bad) > _NAMED else "")
        if len(bad) > self.rules.settings.max_bad_share * read or len(bad) == read:
            raise UserError(
                f"{self.source.name}: {len(bad)} of the {read} samples of part `{part}` are bad, more than "
                f"shard.max_bad_share allows: {named}; mend them or leave them out"
            )
        claimed = sum(claim == part for claim in self.splitter.claims.values())
        if read < claimed and self.source.samples.limit is None:
            log.warning(
                "%s: %d names of the list of part `%s` are not in the set", self.source.name, claimed - read, part
            )
        if bad:
            log.warning("%s: %d of %d samples quarantined: %s", part, len(bad), read, named)

    def exclude(self, workers: Workers, found: Mapping[str, Mapping[tuple[str, str], str]]) -> None:
        """Write the jobs named in `found` again, without the samples {(part, key): reason}."""
        again = (dataclasses.replace(job, excluded=found[job.name]) for job in self.jobs() if job.name in found)
        with runtime.progress(None, label="", enabled=False) as bar:
            for record in (record for result in workers.run(again, bar) for record in result.records):
                if record.part in self.records:
                    place = [old.job for old in self.records[record.part]].index(record.job)
                    self.records[record.part][place] = record


# --- pictures that must not be in two places --------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """Content hashes of pictures as sorted 16-byte rows, by the part that has them."""

    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def add(self, name: str, digests: np.ndarray) -> None:
        """Remember the pictures of part `name`."""
        self.pictures.append((name, np.unique(digests)))

    def find(self, digests: np.ndarray) -> dict[int, str]:
        """{row: part that has the picture} of those that were seen."""
        found: dict[int, str] = {}
        for name, pictures in self.pictures:
            for row in np.flatnonzero(np.isin(digests, pictures)):
                found.setdefault(int(row), name)
        return found


def _rows(digests: Iterable[bytes | bytearray]) -> np.ndarray:
    """16-byte digests as an array [n] that numpy can sort and compare."""
    return np.frombuffer(b"".join(digests), dtype="S16")


def _pictures(writer: SetWriter, part: str) -> np.ndarray:
    return _rows(record.pictures for record in writer.records[part])


def read_trained_on(path: Path) -> list[tuple[str, str]]:
    """(key, SHA-256) of the images that the base was trained on, as far as it knows.

    Raises:
        UserError: The file is missing or is not what the base stage writes.
    """
    try:
        return [(row["key"], row["sha256"]) for row in artifacts.read_jsonl(path)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by the base stage ({error}); run `dvc repro -f base`") from None


def _exclude_overlap(workers: Workers, sets: Sequence[SetWriter], trained_on: Sequence[tuple[str, str]]) -> None:
    """Take pictures out of every part that an earlier training part has.

    Raises:
        UserError: A part holds more of them than `shard.max_overlap_share` allows, or a sample of `base` itself.
    """
    seen = Seen()
    seen.add("base", _rows(shard_jobs.picture_digest(sha256) for _, sha256 in trained_on))
    for writer, part in _in_order(sets):
        found = _overlap(writer, part, seen, set(trained_on) if writer is sets[0] else set())
        if found:
            writer.exclude(workers, found)
        if writer is sets[0] and part in TRAINING_PARTS:
            seen.add(part, _pictures(writer, part))


def _in_order(sets: Sequence[SetWriter]) -> list[tuple[SetWriter, str]]:
    """Training parts first, then the other parts of the data, then the evaluation sets."""
    order = [part for part in TRAINING_PARTS if part in sets[0].parts]
    order += [part for part in sets[0].parts if part not in TRAINING_PARTS]
    return [(sets[0], part) for part in order] + [(writer, part) for writer in sets[1:] for part in writer.parts]


def _overlap(
    writer: SetWriter, part: str, seen: Seen, trained_on: set[tuple[str, str]]
) -> dict[str, dict[tuple[str, str], str]]:
    """{job: {(part, key): reason}} of the pictures of `part` that were seen."""
    rows = seen.find(_pictures(writer, part))
    if not rows:
        return {}
    number, found, keys = 0, dict[str, dict[tuple[str, str], str]](), list[str]()
    for record in writer.records[part]:
        for entry in read_index(writer.rules.output / part / record.index) if record.num_samples else ():
            if (entry.key, entry.sha256) in trained_on:
                raise UserError(
                    f"{writer.source.name}: `{entry.key}` of part `{part}` is among the images that the base was "
                    f"trained on ({artifacts.TRAINED_ON}); run `dvc repro base` with these parts"
                )
            if number in rows:
                found.setdefault(record.job, {})[part, entry.key] = f"the same picture is in {rows[number]}"
                keys.append(entry.key)
            number += 1
    share = writer.rules.settings.max_overlap_share
    if len(keys) > share * number:
        raise UserError(
            f"{writer.source.name}: {len(keys)} of the {number} pictures of part `{part}` are also in "
            f"{', '.join(sorted(set(rows.values())))}, more than shard.max_overlap_share ({share:g}) allows: "
            f"{', '.join(keys[:_NAMED])}; remove the doubles or change the parts"
        )
    log.warning("%s: %d of %d pictures left out: they are also in a training part", part, len(keys), number)
    return found


# --- the whole folder -------------------------------------------------------------------------------------------


def write(
    data: config.Data,
    settings: config.Shard,
    *,
    trained_on: Path,
    target: Path,
    fingerprint: str,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write all parts (but `base`) and all evaluation sets to `target`.

    Args:
        data: The sets.
        settings: Sizes and limits.
        trained_on: The base's list of images it was trained on.
        target: Folder to replace when everything is in order.
        fingerprint: Stands for parameters, code and inputs other than images; names the work folder.
        num_workers: Processes; None: one per core.
        progress: Show a bar.

    Returns:
        The manifest of `target`: `parts` {name: digest}, `numbers` {name: {count: n}}, `digest`.

    Raises:
        UserError: See `SetWriter.write` and `sources`.
    """
    work = artifacts.work_directory(STAGE, fingerprint)
    known_base = read_trained_on(trained_on)
    with start_workers(num_workers) as workers:
        sets = [_set_writer(data, sources.open_source(data), data.parts, work, settings)]
        check_names(sets[0].parts, data.evaluation)
        sets += [
            _set_writer(data, sources.open_evaluation_set(data, name), {name: 1.0}, work, settings)
            for name in data.evaluation
        ]
        for writer in sets:
            writer.write(workers, progress)
        _exclude_overlap(workers, sets, known_base)
    manifest = _finish(work / "output", sets)
    artifacts.publish(work / "output", target)
    shutil.rmtree(work)
    return manifest


def _set_writer(
    data: config.Data, source: Source, parts: Mapping[str, float | str], work: Path, settings: config.Shard
) -> SetWriter:
    rules = Rules(work=work, settings=settings, captioned=source.captioned, tasks=source.tasks)
    splitter = Splitter(parts, source.samples.folder, source.name)
    answers = {part: known_answers.read(data, part) for part in splitter.parts}
    return SetWriter(source=source, splitter=splitter, rules=rules, known_answers=answers)


def _finish(output: Path, sets: Sequence[SetWriter]) -> dict[str, Any]:
    """Write the manifests and the lists of what was left out; return the manifest of the whole."""
    known: dict[str, str] = {}
    parts, numbers = {}, {}
    for writer, part in _in_order(sets):
        facts = _part_facts(writer, part)
        folder = output / part
        hashes = {shard["index"]: shard["index_sha256"] for shard in facts["shards"]}
        if not facts["in_place"]:
            hashes |= {shard["file"]: shard["sha256"] for shard in facts["shards"]}
        _remove_others(folder, hashes)
        parts[part] = artifacts.write_manifest(folder, STAGE, known=hashes, **facts)
        known |= {f"{part}/{name}": sha256 for name, sha256 in hashes.items()}
        numbers[part] = _numbers(facts)
    _remove_others(output, {f"{part}/{name}" for part in parts for name in os.listdir(output / part)})
    _write_list(output / QUARANTINE, sets, lambda record: record.quarantined, with_rejected=False)
    _write_list(output / FILTERED, sets, lambda record: record.excluded, with_rejected=True)
    counts = {
        writer.source.name: {
            "filtered": {"in_no_part": writer.in_no_part, "by_the_set": len(writer.source.rejected)},
            "ignored_members": dict(sorted(writer.ignored.items())),
        }
        for writer in sets
    }
    artifacts.write_manifest(output, STAGE, known=known, parts=parts, numbers=numbers, counts=counts)
    return artifacts.read_manifest(output, stage=STAGE)


def _part_facts(writer: SetWriter, part: str) -> dict[str, Any]:
    records = writer.records[part]
    used = [record for record in records if record.num_samples]
    quarantined = sum(len(record.quarantined) for record in records)
    reasons = Counter(reason for record in records for _, reason in record.excluded)
    num_samples = sum(record.num_samples for record in used)
    num_captions = sum(record.num_captions for record in used)
    pictures, captions = _pictures(writer, part), _rows(record.captions for record in records)
    answers = writer.known_answers.get(part)
    return {
        "name": part,
        "in_place": bool(writer.source.tars),
        "shards": [
            {
                "file": record.file,
                "index": record.index,
                "sha256": record.sha256,
                "index_sha256": record.index_sha256,
                "bytes": record.num_bytes,
                "num_samples": record.num_samples,
                "num_captions": record.num_captions,
            }
            for record in used
        ],
        "counts": {
            "read": sum(record.read for record in records),
            "used": num_samples,
            "filtered": sum(reasons.values()),
            "quarantined": quarantined,
        },
        "filtered": dict(sorted(reasons.items())),
        "num_samples": num_samples,
        "num_captions": num_captions,
        "max_image_pixels": writer.rules.settings.max_image_pixels,
        "dropped_captions": sum(record.dropped_captions for record in records),
        "max_caption_chars": max((record.max_caption_chars for record in used), default=0),
        "duplicates": {
            "images": num_samples - len(np.unique(pictures)),
            "captions": num_captions - len(np.unique(captions)),
        },
        "tasks": {name: dataclasses.asdict(task) for name, task in writer.source.tasks.items()},
        "source": dict(writer.source.facts),
        **({"known_answers": answers} if answers else {}),
    }


def _numbers(facts: Mapping[str, Any]) -> dict[str, int]:
    """The counts of a part that are worth a line in the tracking."""
    return {
        "num_samples": facts["num_samples"],
        "num_captions": facts["num_captions"],
        "num_shards": len(facts["shards"]),
        "quarantined": facts["counts"]["quarantined"],
        "filtered": facts["counts"]["filtered"],
        "dropped_captions": facts["dropped_captions"],
        "duplicate_images": facts["duplicates"]["images"],
        "duplicate_captions": facts["duplicates"]["captions"],
    }


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier, killed run left in `folder` beyond `names`."""
    keep = {folder / name for name in names}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in keep]:
        path.unlink()


def _write_list(
    path: Path, sets: Sequence[SetWriter], pairs: Callable[[Record], list[tuple[str, str]]], *, with_rejected: bool
) -> None:
    def rows() -> Iterator[dict[str, str | None]]:
        for writer in sets:
            for key, reason in writer.source.rejected if with_rejected else ():
                yield {"part": None, "key": key, "reason": reason}
            for part in writer.parts:
                for key, reason in (pair for record in writer.records[part] for pair in pairs(record)):
                    yield {"part": part, "key": key, "reason": reason}

    artifacts.write_jsonl(path, rows())
