"""Fuzz one target, so many times or for a while: within time and memory, each finding once."""

import contextlib
import json
import logging
import math
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider

from pipeline_lib.core.errors import UserError
from tests.fuzz.edits import mutated
from tests.fuzz.targets import Target, kind_of
from tests.small_sets import image_file, write

SECONDS, NUM_BYTES = 5, 1 << 30  # of the processor, and of memory, that one reading may take
WAIT = 12  # times as long by the clock
ROUND = 200  # readings, after which another round begins from another seed


class TookTooLongError(Exception):
    """A reading took too long."""


@dataclass
class Fuzzed:
    """What came of a target."""

    name: str
    executions: int = 0
    refused: int = 0
    findings: dict[str, str] = field(default_factory=dict)  # what and where -> what was printed of it

    def __str__(self) -> str:
        return f"{self.name:16} {self.executions:10} {self.refused:9} {len(self.findings):9}"


HEADER = f"{'target':16} {'executions':>10} {'refused':>9} {'findings':>9}"


def fuzz(
    name: str,
    target: Target,
    folder: Path,
    first_seed: int,
    kept: Path,
    *,
    readings: float = math.inf,
    seconds: float = math.inf,
) -> Fuzzed:
    """Mutate and read so many times, or until the time is over; write the files of findings below `kept`.

    A seed gives the same mutations everywhere and each time, for one version of hypothesis and of the code.
    """
    found, number = Fuzzed(name), first_seed
    shutil.rmtree(folder, ignore_errors=True)
    target.write(folder / "set")
    rows = [{"image": f"{n}.jpg", "caption": f"other {n}"} for n in range(1000, 1002)]
    write(folder / "data/set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for n in range(1000, 1002):  # pictures that no example has
        write(folder / f"data/{n}.jpg", image_file(n))
    files = sorted(path for path in (folder / "set").glob(target.files) if path.is_file())
    assert files, f"{name}: nothing to mutate"
    originals = {path: path.read_bytes() for path in files}
    with contextlib.chdir(folder):
        target.read()  # the example itself is taken
        _clean()
        end = time.monotonic() + seconds
        while readings > 0 and time.monotonic() < end:
            _round(target, originals, found, number, int(min(ROUND, readings)), end, kept)
            number, readings = number + 1, readings - ROUND
    return found


def _round(
    target: Target, originals: dict[Path, bytes], found: Fuzzed, number: int, readings: int, end: float, kept: Path
) -> None:
    """Let hypothesis draw some edits; it stops at the first finding that is not known, and makes it small."""
    last: dict[str, object] = {}

    @seed(number)
    @settings(
        max_examples=readings,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def trial(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(list(originals)))
        content = data.draw(mutated(originals[path], kind_of(path)))
        if time.monotonic() > end + (60 if last else 0):  # while a finding is made small
            return
        path.write_bytes(content)
        found.executions += 1
        try:
            with limits():
                target.read()
        except Exception as error:
            if isinstance(error, UserError) and str(error).encode() and "\n" not in str(error):
                found.refused += 1
                return
            what = _where(error).partition(" (")[0]
            if what not in found.findings:
                last.update(what=what, error=error, path=path, content=content)
                raise
        finally:
            path.write_bytes(originals[path])
            _clean()

    try:
        # Of the constants in whatever modules are loaded hypothesis draws some now and then: other mutations each time.
        with mock.patch.object(HypothesisProvider, "_maybe_draw_constant", return_value=None):
            trial()
    except Exception:
        if not last:
            raise
        what, path = str(last["what"]), Path(str(last["path"]))
        place = kept / found.name / f"{len(found.findings)}-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(last["content"])  # type: ignore[arg-type]
        found.findings[what] = f"{found.name}: {_where(last['error'])}, seed {number} -> {place}"  # type: ignore[arg-type]
        print(found.findings[what], flush=True)


def _where(error: Exception) -> str:
    """Name an exception by its type and the last line of ours that it passed; a balance by its line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "pipeline_lib" in frame.filename] or frames
    if isinstance(error, AssertionError):
        ours = [frame for frame in frames if frame.filename.endswith("targets.py")] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno} ({str(error)[:100]!r})"


def _clean() -> None:
    for name in ("shards", ".checkpoints"):
        shutil.rmtree(name, ignore_errors=True)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise `TookTooLongError` or MemoryError inside the block above the limits."""

    def stop(_number: int, _frame: object) -> None:
        raise TookTooLongError(f"more than {SECONDS} s")

    logging.disable(logging.ERROR)  # what readers say of mutated sets
    before = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAIT * SECONDS)}
    for timer, (number, seconds) in timers.items():
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + NUM_BYTES, before[1]))
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for timer in timers:
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
