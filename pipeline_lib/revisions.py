"""What git and DVC know of other versions of the project: commits, experiments, and the files of both."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_lib import artifacts
from pipeline_lib.errors import UserError

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


def experiments(project: Path) -> dict[str, tuple[str, str]]:
    """Commit and baseline of every DVC experiment; of several with one name, of the newest."""
    found: dict[str, tuple[str, str]] = {}
    listed = git(project, "for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    for line in listed.decode().splitlines():
        commit, ref = line.split(" ", 1)
        if match := EXPERIMENT.fullmatch(ref):
            found.setdefault(match[3], (commit, match[1] + match[2]))
    return found


def current_experiments() -> list[str]:
    """Names of the finished DVC experiments that start from the current commit; those of others have other code."""
    return run_dvc("exp", "list", "--name-only").split()


def resolve(project: Path, revision: str) -> tuple[str, str]:
    """The commit of an experiment or git revision, and the baseline of an experiment ("" for a git revision).

    Raises:
        UserError: There is neither.
    """
    commit, baseline = experiments(project).get(revision, ("", ""))
    return commit or git(project, "rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip(), baseline


def list_files(project: Path, commit: str) -> list[str]:
    """Names of the files that a commit holds."""
    return git(project, "ls-tree", "-r", "--name-only", commit).decode().splitlines()


def copy_files(project: Path, commit: str, names: Sequence[str], target: Path) -> None:
    """Write files of a commit to the folder `target`."""
    archived = git(project, "archive", "--format=tar", commit, "--", *names)
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        archive.extractall(target, filter="data")


def copy_outputs(project: Path, commit: str, names: Sequence[str], target: Path) -> None:
    """Write those of DVC's output files that its cache still has to the folder `target`."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    files = DVCFileSystem(str(project.resolve()), rev=commit)
    for name in names:
        try:
            artifacts.write_text(target / name, files.read_text(name))
        except (DvcException, OSError):
            continue  # never made, or gone from the cache


def open_revision(revision: str, folder: Path) -> Any:
    """DVC's file system of a revision or experiment, whose params.yaml is copied to the new folder `folder`."""
    from dvc.api import DVCFileSystem

    folder.mkdir(parents=True)
    files = DVCFileSystem(rev=revision)
    artifacts.write_text(folder / "params.yaml", files.read_text("params.yaml"))
    return files
