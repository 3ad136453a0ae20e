"""Versions of the project: the workspace, and the commits and experiments that git and DVC know, with their files."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.tracking.describe import code_deps, start_op
from pipeline_lib.tracking.spool import Op
from pipeline_lib.tracking.text import safe_name

EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")


def run_command(*command: str, capture: bool = True) -> str:
    """Run a command; return its output, or show it on the terminal unless `capture`.

    Raises:
        UserError: It failed.
    """
    pipe = subprocess.PIPE if capture else None
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:  # noqa: S603 - no shell
        try:
            output, errors = process.communicate()
        except KeyboardInterrupt:  # the command got it too: let it stop its stage and tidy up
            process.wait()
            raise
    if process.returncode:
        lines = (errors or "").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        raise UserError(f"{' '.join(command).removeprefix(f'{sys.executable} -m ')}: {reason}")
    return output or ""


def run_dvc(*arguments: str, capture: bool = True) -> str:
    """Run the `dvc` command of this environment by `run_command`."""
    return run_command(sys.executable, "-m", "dvc", *arguments, capture=capture)


def git(project: Path, *arguments: str) -> str:
    """Return what git prints in `project`, without the space around it.

    Raises:
        UserError: It failed.
    """
    command = ["git", "-C", str(project), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise UserError(f"git {arguments[0]} {arguments[-1]}: {reason[0] if reason else 'failed'}")
    return done.stdout.strip()


def _experiments(project: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, commit and baseline of every DVC experiment, the newest first."""
    listed = git(project, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    for line in listed.splitlines():
        commit, ref = line.split(" ", 1)
        if match := EXPERIMENT.fullmatch(ref):
            yield match[3], commit, match[1] + match[2]


def experiments(project: Path) -> dict[str, tuple[str, str]]:
    """Return commit and baseline of every DVC experiment by its name; of several with one name, of the newest."""
    found: dict[str, tuple[str, str]] = {}
    for name, commit, baseline in _experiments(project):
        found.setdefault(name, (commit, baseline))
    return found


def current_experiments(project: Path = Path()) -> list[str]:
    """List the names of the finished DVC experiments of the current commit; those of others have other code."""
    head = git(project, "rev-parse", "HEAD")
    return [name for name, _, baseline in _experiments(project) if baseline == head]


def resolve(project: Path, revision: str) -> tuple[str, str]:
    """Return the commit of an experiment or git revision, and the experiment's baseline ("" for a git revision).

    Raises:
        UserError: There is neither.
    """
    commit, baseline = experiments(project).get(revision, ("", ""))
    return commit or git(project, "rev-parse", "--verify", f"{revision}^{{commit}}"), baseline


def open_revision(project: Path, revision: str) -> Any:
    """Open a revision or experiment as DVC's file system: git's files, and the outputs that DVC's cache still has."""
    from dvc.api import DVCFileSystem

    return DVCFileSystem(str(project.resolve()), rev=revision)


def copy_text_files(files: Any, names: Iterable[str], target: Path) -> None:
    """Copy text files (or those in folders) of `open_revision` to the folder `target`; those not there are left out."""
    from dvc.exceptions import DvcException
    from dvc_data.index.index import DataIndexError

    not_there = (DvcException, DataIndexError, OSError)  # never made, or not in this machine's cache
    for name in names:
        with suppress(*not_there):
            for path in files.find(name) or [name]:
                with suppress(*not_there):
                    artifacts.write_text(target / path, files.read_text(path))


@dataclass(frozen=True)
class Snapshot:
    """params.yaml with the files beside it that name a configuration and its outputs."""

    params_file: Path
    origin: Mapping[str, str] | None = None  # MLflow tags of the revision; None: the workspace

    def start_op(self) -> Op:
        """Return the operation that would begin a run of this configuration."""
        return start_op("lineage", self.params_file, {}, origin=self.origin)

    def folders(self) -> dict[str, Path]:
        """Return the output folder of each stage, in the order of the pipeline, relative to the current folder."""
        folders = config.load(self.params_file, Paths).folders()
        return {stage: self.params_file.parent / folder for stage, folder in folders.items()}

    def digests(self) -> dict[str, str]:
        """Return the digest of each output that is there, by the stage's name in MLflow."""
        there = {safe_name(s): f for s, f in self.folders().items() if (f / artifacts.MANIFEST).is_file()}
        return artifacts.digests(there)

    def report_numbers(self) -> Path:
        """Return the path of the report's few numbers, which DVC compares."""
        return self.params_file.parent / config.load(self.params_file, Paths).report_numbers

    def headlines(self) -> dict[str, float | str]:
        """Return the report's few numbers; {} where there are none."""
        file = self.report_numbers()
        return artifacts.read_json(file) if file.is_file() else {}


@contextmanager
def open_snapshot(params_file: Path, revision: str | None) -> Iterator[Snapshot]:
    """Yield the workspace (None), or a temporary copy of a revision's parameters, code, manifests and numbers.

    Raises:
        UserError: There is no such revision, or it has no file of this name.
    """
    if revision is None:
        yield Snapshot(params_file)
        return
    project = params_file.parent
    commit, baseline = resolve(project, revision)
    named = {"dvc.exp_name": revision, "dvc.exp_baseline": baseline} if baseline else {}
    origin = {**named, "mlflow.source.git.commit": commit, "git.dirty": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        folder, files = Path(scratch), open_revision(project, commit)
        snapshot = Snapshot(folder / params_file.name, origin)
        copy_text_files(files, (params_file.name, "dvc.yaml", "dvc.lock"), folder)
        if not snapshot.params_file.is_file():
            raise UserError(f"{params_file.name}: not in commit {commit[:10]}; name a revision of this project")
        outputs = [path / artifacts.MANIFEST for path in snapshot.folders().values()]
        made = [path.relative_to(folder).as_posix() for path in (*outputs, snapshot.report_numbers())]
        copy_text_files(files, [*code_deps(folder / "dvc.yaml"), *made], folder)
        yield snapshot
