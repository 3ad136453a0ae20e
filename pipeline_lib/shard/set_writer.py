"""One set and its parts on the way into shards: its jobs, what came of them, and whether too many samples are bad."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline_lib import terminal
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import read_index
from pipeline_lib.core.work_folders import bytes_in, check_room
from pipeline_lib.shard.jobs import FileJob, Job, TarJob
from pipeline_lib.shard.records import Record, Result
from pipeline_lib.shard.triage import Rules
from pipeline_lib.shard.workers import Workers
from pipeline_lib.sources.parts import ListCheck, Splitter, check_keys, checked
from pipeline_lib.sources.samples import Sample, Source
from pipeline_lib.sources.unnamed import Unnamed, find_unnamed

log = logging.getLogger(__name__)
SIZED = 100  # one in so many images is asked for its size before any is copied
NAMED = 5  # bad samples named in a message
FIRST = 3  # samples of which the log says what is joined


@dataclass(slots=True, kw_only=True)
class SetWriter:
    """One source and its parts on the way into shards."""

    source: Source
    splitter: Splitter
    rules: Rules
    known_answers: Mapping[str, Any] = field(default_factory=dict)  # by part, see `known_answers.read_known_answers`
    records: dict[str, list[Record]] = field(default_factory=dict)
    similar: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # by part: (key, part with one like it)
    num_listed: int = 0  # samples in parts that are written; 0 of tars, which are listed as they are indexed
    sizes: list[int] = field(default_factory=list)  # bytes of every `SIZED`th of them
    in_no_part: int = 0
    ignored: Counter[str] = field(default_factory=Counter)  # files and members that are not read, by reason
    unnamed: Unnamed = field(default_factory=Unnamed)
    resumed: int = 0
    excluded: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)  # by job: {(part, key): reason}

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts to write; `base` is the base stage's own."""
        return tuple(part for part in self.splitter.parts if part != "base")

    def check_keys(self) -> None:
        """Refuse doubled keys: before anything is written, or (tars) from the indexes.

        Raises:
            UserError: A key stands twice.
        """
        check_keys(self._indexed if self.source.tars else self._listed, self.source.name)

    def _listed(self) -> Iterator[tuple[str, str]]:
        self.num_listed, self.sizes, parts = 0, [], self.parts
        for sample in checked(self.source.samples, self.splitter, whole=self.source.samples.whole):
            if self.splitter(sample) in parts:
                if self.num_listed % SIZED == 0:
                    with suppress(OSError, ValueError):  # a missing image is found where it is read
                        self.sizes.append(sample.image.size)
                self.num_listed += 1
            yield sample.key, sample.image.where

    def _check_room(self) -> None:
        """Refuse a set whose images do not fit on the disk, before the first is copied.

        Raises:
            UserError: They do not, by the mean of the sizes that were looked at.
        """
        if self.sizes:
            mean = sum(self.sizes) / len(self.sizes)
            finished = sum(bytes_in(self.rules.output / part) for part in self.parts)
            check_room(self.rules.work, int(mean * self.num_listed) - finished)

    def _indexed(self) -> Iterator[tuple[str, str]]:
        for record in (record for part in self.parts for record in self.records[part]):
            if record.num_samples:
                for entry in read_index(self.rules.output / record.part / record.index):
                    yield entry.key, f"{record.file}: {entry.member}"

    def jobs(self) -> Iterator[Job]:
        """Yield all jobs in order; the same ones each time."""
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
        self.ignored = Counter(self.source.ignored)
        self._check_rows()
        if not self.source.tars:
            self.check_keys()
            self._check_room()
        lists = self._run(workers, progress)
        if self.source.tars:
            self.check_keys()
        if self.resumed:
            log.info("%s: resumed, %d shards were finished", self.source.name, self.resumed)
        first = list(islice(self.source.samples, FIRST))
        if not first:
            raise UserError(
                f"{self.source.name}: the set in {self.source.samples.folder} holds no samples{self._why()}"
            )
        if self.source.tars and self.source.samples.whole:
            lists.see(first[0])
            lists.finish()
        for part in self.parts:
            self._check_bad(part)
        self._find_unnamed()
        self._say(first)

    def _run(self, workers: Workers, progress: bool) -> ListCheck:
        """Take the results of all jobs; return which lines of the list files named samples of tars."""
        lists, tars = ListCheck(self.splitter), self.source.tars
        how = {"total": len(tars), "unit": "tar"} if tars else {"total": self.num_listed, "unit": "img"}
        with terminal.progress(None, label=f"shard {self.source.name}", enabled=progress, **how) as bar:
            for result in workers.run(self.jobs()):
                bar.update(1 if tars else sum(record.read for record in result.records))
                self._take(result)
                for line, where in result.named:
                    lists.add(line, where)
        return lists

    def _find_unnamed(self) -> None:
        """Look for images that no row names, and say so."""
        folder = self.source.image_folder
        if folder:
            self.unnamed = find_unnamed(folder, self.source.all_samples)
        count, first = self.unnamed
        if count:
            named = ", ".join(first) + (", ..." if count > len(first) else "")
            log.warning("%s: no row names %d images in %s: %s", self.source.name, count, folder, named)

    def _say(self, first: Sequence[Sample]) -> None:
        """Log what is joined in the first samples, what was not read, and which classes have no sample."""
        log.info("%s: begins with %s", self.source.name, "; ".join(self._described(sample) for sample in first))
        if self.ignored:
            log.warning("%s: left aside: %s", self.source.name, "; ".join(self._ignored()))
        if self.source.tars and self.source.labelled:
            self._name_unused_classes()

    def _ignored(self) -> list[str]:
        return [f"{reason} ({count})" for reason, count in sorted(self.ignored.items())]

    def _why(self) -> str:
        """Return the reasons for which a set without samples has none."""
        records = [record for part in self.parts for record in self.records[part]]
        bad = Counter(reason for record in records for _, reason in record.quarantined)
        reasons = [*(f"{reason} ({count})" for reason, count in bad.most_common()), *self._ignored()]
        return f": {first_named(reasons)}" if reasons else ""

    def _described(self, sample: Sample) -> str:
        """Return a sample as joined: its image, its first caption and its classes."""
        tasks = self.source.tasks
        classes = [f"{task} {tasks[task].classnames[label]}" for task, label in sample.labels.items()]
        return ", ".join([sample.image.where, *map(repr, [text[:60] for text in sample.captions[:1]]), *classes])

    def _name_unused_classes(self) -> None:
        """Warn of classes that no sample has: the names may be those of another set, or in another order."""
        records = [record for part in self.parts for record in self.records[part] if record.num_samples]
        indexes = (read_index(self.rules.output / record.part / record.index) for record in records)
        used = {(task, label) for entries in indexes for entry in entries for task, label in entry.labels.items()}
        for task, facts in self.source.tasks.items():
            unused = [name for label, name in enumerate(facts.classnames) if (task, label) not in used]
            if unused and self.source.samples.whole:
                names = first_named(unused)
                log.warning(
                    "%s: no sample of %d of %d classes: %s", self.source.name, len(unused), len(facts.classnames), names
                )

    def _check_rows(self) -> None:
        """Say which rows of the file that describes the set are left out.

        Raises:
            UserError: They are more than `shard.max_bad_share` allows.
        """
        rows = self.source.rows
        if rows is None or not rows.bad:
            return
        named = first_named([f"{name}: {reason}" for name, reason in islice(rows.named(), NAMED + 1)])
        if len(rows.bad) > self.rules.settings.max_bad_share * rows.read:
            raise UserError(
                f"{self.source.name}: {len(rows.bad)} of the {rows.read} rows of {rows.path} are bad, more than "
                f"shard.max_bad_share allows: {named}; mend them or take them out"
            )
        log.warning("%s: %d of %d rows left out: %s", self.source.name, len(rows.bad), rows.read, named)

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
        named = first_named([f"{key}: {reason}" for key, reason in bad])
        if len(bad) > self.rules.settings.max_bad_share * read or len(bad) == read:
            raise UserError(
                f"{self.source.name}: {len(bad)} of the {read} samples of part `{part}` are bad, more than "
                f"shard.max_bad_share allows: {named}; mend them or leave them out"
            )
        if bad:
            log.warning("%s: %d of %d samples quarantined: %s", part, len(bad), read, named)

    def exclude(self, workers: Workers, found: Mapping[str, Mapping[tuple[str, str], str]]) -> None:
        """Write the jobs named in `found` again, without the samples {(part, key): reason}.

        The job of a tar serves several parts: what one has lost stays lost when another is written again.
        """
        for name, samples in found.items():
            self.excluded.setdefault(name, {}).update(samples)
        again = (dataclasses.replace(job, excluded=self.excluded[job.name]) for job in self.jobs() if job.name in found)
        for record in (record for result in workers.run(again) for record in result.records):
            if record.part in self.records:
                place = [old.job for old in self.records[record.part]].index(record.job)
                self.records[record.part][place] = record


def first_named(names: Sequence[str]) -> str:
    """Return the first of many, for a message."""
    return "; ".join(names[:NAMED]) + ("; ..." if len(names) > NAMED else "")
