"""What a unit of work costs: by a program of the peers' environment, or by this process."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.inputs import Used
from tests.tiny_project import ROOT

PYTHON = ROOT / ".venv-peers/bin/python"
SCRIPTS = Path(__file__).parent / "scripts"


class Peer:
    """A program of `scripts` that works when it is called and waits in between."""

    def __init__(self, script: str, *arguments: object, threads: int, folder: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed at the end of the block
        self.child = subprocess.Popen(
            [PYTHON, SCRIPTS / f"{script}.py", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __call__(self) -> dict[str, Any]:
        """Let it do one unit; what it answers."""
        try:
            self.child.stdin.write("go\n")
            self.child.stdin.flush()
            return json.loads(self.child.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self.child.wait(60)
            self.errors.seek(0)
            raise RuntimeError(self.errors.read()[-4000:]) from None

    def used(self) -> Used:
        """Let it do one unit; what that cost."""
        answer = self()
        return Used(answer["cpu"], answer["wall"])

    def gigabytes(self) -> float:
        """The most memory that its process has held so far."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        [most] = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(most) * 1024 / 1e9

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.communicate()
        self.errors.close()


def in_this_process(call: Callable[[], object]) -> Used:
    """What `call` costs here."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Used(time.process_time() - cpu, time.perf_counter() - wall)
