"""One run of a stage in a process of its own, disturbed, and what it left behind."""

import contextlib
import fcntl
import hashlib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib import terminal

OUTPUTS = {  # in the order of the stages; only a project whose captions a language model reads has `language`
    "base": ("data/base", "data/base.parameters.json"),
    "shard": ("data/shards", "data/shards.parameters.json"),
    "language": ("data/language",),
    "cache_teacher": ("data/teacher", "data/pixels"),
    "refine": ("data/refined",),
    "evaluate": ("data/eval",),
    "report": ("data/report", "data/report.json"),
}
INPUTS = {  # folders of stages before it: what they hold is known by its hash
    "base": (),
    "shard": ("data/base",),
    "language": ("data/shards",),
    "cache_teacher": ("data/base", "data/shards", "data/language"),
    "refine": ("data/base", "data/shards", "data/language", "data/teacher", "data/pixels"),
    "evaluate": ("data/base", "data/refined", "data/shards"),
    "report": ("data/refined", "data/eval", "data/shards"),
}
PIPE_SIZE = 1 << 20  # bytes; more than a stage says
LONGEST = 180  # seconds; a stage that takes longer hangs


@dataclass(frozen=True)
class Ended:
    """How a run of a stage ended."""

    code: int  # negative: killed by that signal
    said: str
    seconds: float

    @property
    def is_refusal(self) -> bool:
        """One line says what is wrong."""
        return self.code == 1 and self.said.count("error: ") == 1 and "Traceback" not in self.said


class Running:
    """A stage in a forked process; the modules that this one has imported are there already."""

    def __init__(self, project: Path, stage: str, before: Callable[[], None] | None = None) -> None:
        """Start it.

        Args:
            project: Its folder.
            stage: Its name.
            before: Called in the new process before the stage.
        """
        module = importlib.import_module(f"stages.{stage}")
        ends = os.pipe()  # no file, which could not grow either
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.began, self.end = time.monotonic(), ends[0]
        self.pid = os.fork()
        if self.pid == 0:
            _become(project, module, ends[1], before)
        os.close(ends[1])

    def wait(self) -> Ended:
        """Wait until it has ended, or hangs and is killed."""
        status = _wait(self.pid, self.began)
        code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGALRM
        return Ended(code, _said(self.end), time.monotonic() - self.began)


def run(project: Path, stage: str, disturb: Callable[[int], None] | None = None, **inside: Callable[[], None]) -> Ended:
    """Run a stage in a process of its own.

    Args:
        project: Its folder.
        stage: Its name.
        disturb: Called with the process id as soon as the process is there, in a thread of this process.
        inside: `before`, see `Running`.
    """
    running = Running(project, stage, **inside)
    thread = threading.Thread(target=disturb, args=(running.pid,)) if disturb else None
    if thread:
        thread.start()
    ended = running.wait()
    if thread:
        thread.join()
    return ended


def _said(end: int) -> str:
    """Read what the stage wrote, and not what processes that outlive it may still write."""
    os.set_blocking(end, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(end, PIPE_SIZE):
            text += part
    os.close(end)
    return text.decode(errors="replace")


def _become(project: Path, module: object, end: int, before: Callable[[], None] | None) -> None:
    """Turn this process into the stage; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(project)
        for number in (1, 2):
            os.dup2(end, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = ["stage"]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if before:
            before()
        terminal.run_stage(module.main, None)  # type: ignore[attr-defined]
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # before `run_stage` listens; a command ends in one line there too, see `pipeline_lib`
        code = 128 + signal.SIGINT
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, began: float) -> int | None:
    """Return the exit status; None: it hung, and it and its children were killed."""
    while time.monotonic() - began < LONGEST:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def left(project: Path, stage: str) -> str:
    """Return a digest of every file below the stage's outputs, names and bytes; empty: there is none of them."""
    found = []
    for name in OUTPUTS[stage]:
        path = project / name
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        found += [(str(p.relative_to(project)), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else ""


def remove_outputs(project: Path, stage: str) -> None:
    """Remove what the stage makes, as DVC does before it starts one."""
    for name in OUTPUTS[stage]:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# ---- faults ----


def signal_after(number: int, seconds: float) -> Callable[[int], None]:
    """Send a signal to the stage's process after so many seconds."""

    def disturb(pid: int) -> None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    return disturb


def killed_after_rename(count: int) -> Callable[[], None]:
    """SIGKILL to the process itself, right after its rename number `count`."""

    def before() -> None:
        renames = [0]

        def counting(original: Callable[..., object]) -> Callable[..., object]:
            def renamed(*arguments: object, **options: object) -> object:
                result = original(*arguments, **options)
                renames[0] += 1
                if renames[0] == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return renamed

        os.replace, os.rename = counting(os.replace), counting(os.rename)  # type: ignore[assignment]

    return before


def files_end_at(num_bytes: int) -> Callable[[], None]:
    """The system refuses to write beyond so many bytes of any file, as on a full disk: also in C code and children."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def damage(path: Path, kind: str, dice: random.Random) -> None:
    """Flip a bit, cut the end off, or delete the file."""
    if kind == "deleted":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: dice.randrange(len(data))] if data else data
    elif data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.chmod(0o644)
    path.write_bytes(data)
