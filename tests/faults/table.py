"""All faults of a stage, each on a fresh copy of a project in which the stages before it have run."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import trials
from tests.faults.trials import Ended
from tests.language.asked import ASKED, TUNE
from tests.tiny_model import write_tiny_language
from tests.tiny_project import STAGES, make_project

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SIZES = (0, 300, 3_000, 30_000, 100_000, 300_000)  # bytes at which every file ends
DAMAGES = ("flipped bit", "cut", "deleted")
ALL = tuple(trials.OUTPUTS)
LANGUAGE = {**ASKED, "language__tune": TUNE}
FEW = {"refine": "refine.txt", "val": 0.3, "eval": 0.7}


@dataclass
class Row:
    """What came of one kind of fault on a stage."""

    stage: str
    fault: str
    counts: Counter = field(default_factory=Counter)  # survived, refused, finding
    findings: list[str] = field(default_factory=list)

    def add(self, outcome: str) -> None:
        """Count an outcome; other than `survived` and `refused` it is a finding."""
        known = outcome in ("survived", "refused")
        self.counts[outcome if known else "finding"] += 1
        if not known:
            self.findings.append(f"{self.stage}, {self.fault}: {outcome}")

    def __str__(self) -> str:
        tried = sum(self.counts.values())
        numbers = " ".join(f"{self.counts[name]:9}" for name in ("survived", "refused", "finding"))
        return f"{self.stage:14} {self.fault:34} {tried:6} {numbers}"


HEADER = f"{'stage':14} {'fault':34} {'tried':>6} {'survived':>9} {'refused':>9} {'finding':>9}"


class Stage:
    """A stage, ready to run: its project, and what it leaves where nothing disturbs it."""

    def __init__(self, name: str, project: Path, scratch: Path, seed: int = 0) -> None:
        """Take a project in which all stages have run."""
        self.name, self.project, self.scratch, self.dice = name, project, scratch, random.Random(seed)
        self.reference = trials.left(project, name)
        self.seconds = 0.0

    def fresh(self) -> Path:
        """Return a copy of the project without the outputs of this stage and of later ones."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(self.project, self.scratch, symlinks=True)
        for later in ALL[ALL.index(self.name) :]:
            trials.remove_outputs(self.scratch, later)
        return self.scratch

    def rows(self, times: int) -> Iterator[Row]:
        """Try every fault, the random ones `times` times."""
        yield self._undisturbed()
        for number in SIGNALS:
            moments = [self.dice.random() * self.seconds for _ in range(times)]
            faults = [{"disturb": trials.signal_after(number, moment)} for moment in moments]
            yield self._disturbed(f"{number.name} at a random moment", faults)
        renames = [{"before": trials.killed_after_rename(count)} for count in range(1, times + 1)]
        yield self._disturbed("SIGKILL after the n-th rename", renames)
        yield self._disturbed("files cannot grow", [{"before": trials.files_end_at(size)} for size in SIZES])
        for kind in DAMAGES if trials.INPUTS[self.name] else ():
            yield self._damaged(kind, times)
        yield self._twice([0.0, *(self.dice.random() * self.seconds for _ in range(times - 1))])

    def _undisturbed(self) -> Row:
        row, project = Row(self.name, "none: the same bits again"), self.fresh()
        ended = trials.run(project, self.name)
        self.seconds = ended.seconds
        row.add(self._same(project, ended))
        return row

    def _disturbed(self, fault: str, faults: list[dict[str, Callable]]) -> Row:
        row = Row(self.name, fault)
        for disturbance in faults:
            project = self.fresh()
            ended = trials.run(project, self.name, **disturbance)
            row.add(self._after(project, ended))
        return row

    def _after(self, project: Path, ended: Ended) -> str:
        """Say what became of a disturbed run: it did not end well with a part, and a second run ends as it should."""
        found = trials.left(project, self.name)
        whole = found == self.reference
        if ended.code == 0 and not whole:
            return f"exit 0 with other outputs; {ended.said[-300:]}"
        if ended.code == 70 or "Traceback" in ended.said:
            return f"exit {ended.code}, a traceback: {ended.said.strip()[-200:]}"
        if ended.code == -signal.SIGALRM:
            return "hung"
        trials.remove_outputs(project, self.name)
        return self._same(project, trials.run(project, self.name))

    def _same(self, project: Path, ended: Ended) -> str:
        if ended.code:
            return f"exit {ended.code} when run again: {ended.said[-300:]}"
        return "survived" if trials.left(project, self.name) == self.reference else "other bits when run again"

    def _damaged(self, kind: str, times: int) -> Row:
        row = Row(self.name, f"an input file: {kind}")
        places = [path for place in trials.INPUTS[self.name] for path in sorted((self.project / place).rglob("*"))]
        names = [path.relative_to(self.project) for path in places if path.is_file()]
        for name in self.dice.sample(names, min(times, len(names))):
            project = self.fresh()
            trials.damage(project / name, kind, self.dice)
            ended = trials.run(project, self.name)
            if ended.is_refusal:
                row.add("refused")
            elif ended.code == 0 and trials.left(project, self.name) == self.reference:
                row.add("survived")
            else:
                said = ended.said.strip().splitlines()
                row.add(f"{name}: exit {ended.code}, {said[-1][:200] if said else 'other outputs, and no word'}")
        return row

    def _twice(self, delays: list[float]) -> Row:
        """Start the stage a second time while it runs: both do the work, or the one that is refused harms nothing."""
        row = Row(self.name, "two runs at once")
        for delay in delays:
            project = self.fresh()
            first = trials.Running(project, self.name)
            time.sleep(delay)
            both = [trials.Running(project, self.name).wait(), first.wait()]
            whole = trials.left(project, self.name) == self.reference
            if whole and all(one.code == 0 for one in both):
                row.add("survived")
            elif whole and any(one.code == 0 for one in both) and any(one.is_refusal for one in both):
                row.add("refused")
            else:
                codes = [f"exit {one.code}: {one.said.strip()[-200:]}" for one in both]
                row.add(f"{'the right' if whole else 'other'} outputs, {' and '.join(codes)}")
        return row


def few_samples(folder: Path, counts: Sequence[int] = (0, 1, 2)) -> Iterator[Row]:
    """Run all stages on so many training samples, in one batch and in one that is larger than the set."""
    for count in counts:
        row = Row("all", f"{count} training samples")
        for batch_size in (max(1, count), 8):
            shutil.rmtree(folder, ignore_errors=True)
            project = make_project(folder, num_samples=40, refine__batch_size=batch_size, data__parts=FEW)
            names = [path.name for path in sorted((project / "set").glob("*.png"))]
            (project / "set/refine.txt").write_text("".join(f"{name}\n" for name in names[:count]))
            row.add(_until_refused(project))
        yield row


def _until_refused(project: Path) -> str:
    for name in STAGES:
        ended = trials.run(project, name)
        if ended.is_refusal:
            return "refused"
        if ended.code:
            return f"{name}: exit {ended.code}: {ended.said.strip()[-200:]}"
    return "survived"


def make(folder: Path, *, language: bool = False) -> Path:
    """Make a tiny project and run all stages; with `language` a tuned language model reads the captions."""
    values = {"cache_teacher__verify_share": 0.5, "runtime__checkpoint_every": 1, **(LANGUAGE if language else {})}
    project = make_project(folder, num_samples=48, **values)
    if language:
        write_tiny_language(project / "llama")
    for name in ALL if language else STAGES:
        ended = trials.run(project, name)
        assert ended.code == 0, ended.said
    return project
