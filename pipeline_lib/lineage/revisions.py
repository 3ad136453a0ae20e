"""What git and DVC know of other versions of the project: commits, experiments, and the files of both."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError

EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")


def run_command(*command: str, capture: bool = True) -> str:
    """Run a command; returns its output, or shows it on the terminal.

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
        said = (errors or "").strip().splitlines()
        reason = said[-1] if said else f"exit code {process.returncode}"
        raise UserError(f"{' '.join(command).removeprefix(f'{sys.executable} -m ')}: {reason}")
    return output or ""


def run_dvc(*arguments: str, capture: bool = True) -> str:
    """Run the `dvc` command of this environment; returns its output, or shows it on the terminal.

    Raises:
        UserError: It failed.
    """
    return run_command(sys.executable, "-m", "dvc", *arguments, capture=capture)


def git(project: Path, *arguments: str) -> bytes:
    """What git prints in `project`.

    Raises:
        UserError: It failed.
    """
    done = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, check=False)  # noqa: S603, S607
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"git {arguments[0]} {arguments[-1]}: {reason[0] if reason else 'failed'}")
    return done.stdout


def _experiments(project: Path) -> Iterator[tuple[str, str, str]]:
    """Name, commit and baseline of every DVC experiment, the newest first."""
    listed = git(project, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    for line in listed.decode().splitlines():
        commit, ref = line.split(" ", 1)
        if match := EXPERIMENT.fullmatch(ref):
            yield match[3], commit, match[1] + match[2]


def experiments(project: Path) -> dict[str, tuple[str, str]]:
    """Commit and baseline of every DVC experiment; of several with one name, of the newest."""
    found: dict[str, tuple[str, str]] = {}
    for name, commit, baseline in _experiments(project):
        found.setdefault(name, (commit, baseline))
    return found


def current_experiments(project: Path = Path()) -> list[str]:
    """Names of the finished DVC experiments that start from the current commit; those of others have other code."""
    head = git(project, "rev-parse", "HEAD").decode().strip()
    return [name for name, _, baseline in _experiments(project) if baseline == head]


def resolve(project: Path, revision: str) -> tuple[str, str]:
    """The commit of an experiment or git revision, and the baseline of an experiment ("" for a git revision).

    Raises:
        UserError: There is neither.
    """
    commit, baseline = experiments(project).get(revision, ("", ""))
    return commit or git(project, "rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip(), baseline


def open_revision(project: Path, revision: str) -> Any:
    """DVC's file system of a revision or experiment: the files of git, and those outputs that DVC's cache still has."""
    from dvc.api import DVCFileSystem

    return DVCFileSystem(str(project.resolve()), rev=revision)


def copy(files: Any, names: Iterable[str], target: Path) -> None:
    """Write those of the text files that are there, alone or in a folder that is named, to the folder `target`."""
    from dvc.exceptions import DvcException

    for name in names:
        for path in files.find(name) or [name]:
            try:
                artifacts.write_text(target / path, files.read_text(path))
            except (DvcException, OSError):
                continue  # never made, or gone from the cache
