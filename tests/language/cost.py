"""What running something costs: CPU seconds, and the memory that this process holds at most (Linux)."""

import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What running something cost."""

    seconds: float  # of the processor, children included
    peak: float  # GB that this process held at most meanwhile

    def __str__(self) -> str:
        return f"{self.seconds:.0f} CPU s, {self.peak:.1f} GB"


def measure(run: Callable[[], Any]) -> Cost:
    """Run something; the kernel's peak of memory begins anew here."""
    gc.collect()  # models hold rings
    Path("/proc/self/clear_refs").write_text("5")
    before = _spent()
    run()
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return Cost(_spent() - before, int(peak.split()[1]) / 1e6)


def _spent() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
