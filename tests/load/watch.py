"""One run of a stage as a process of its own, its memory and open files looked at again and again."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.tiny_project import ROOT

INTERVAL = 0.05  # seconds between two looks
MEGABYTE = 2**20


@dataclass
class Ran:
    """What a run took; memory in megabytes, as it was whenever it was looked at."""

    seconds: float = 0.0
    cpu_seconds_of: dict[int, float] = field(default_factory=dict)  # of each process
    peak_resident: float = 0.0  # of one process
    files: int = 0  # open at once in one process
    private: list[float] = field(default_factory=list)  # at each look, of all processes: no page of a file

    @property
    def cpu_seconds(self) -> float:
        """Those of all processes."""
        return sum(self.cpu_seconds_of.values())

    @property
    def second_half(self) -> float:
        """What the peak of the second half has above that of the first."""
        middle = len(self.private) // 2
        return max(self.private[middle:], default=0.0) - max(self.private[:middle], default=0.0)


def run(project: Path, stage: str) -> Ran:
    """Run `python -m stages.<stage>` to its end.

    Raises:
        RuntimeError: It failed; holds what it said.
    """
    ran, began = Ran(), time.perf_counter()
    path = project / f"{stage}.log"
    with path.open("w") as log:
        command = [sys.executable, "-m", f"stages.{stage}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            look(process.pid, ran)
            time.sleep(INTERVAL)
    ran.seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{stage}: exit {process.returncode}: {path.read_text()[-2000:]}")
    return ran


def look(pid: int, ran: Ran) -> None:
    """Add what a process and all that it started hold just now; one that ends meanwhile holds nothing."""
    private = 0.0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            memory, files, times = process.memory_info(), process.num_fds(), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie's folder of descriptors may not be read
            continue
        ran.cpu_seconds_of[process.pid] = times.user + times.system
        private += (memory.rss - memory.shared) / MEGABYTE
        ran.peak_resident, ran.files = max(ran.peak_resident, memory.rss / MEGABYTE), max(ran.files, files)
    ran.private.append(private)
