"""The rows that were measured, on disk after each of them."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.core import artifacts


class Deadline(BaseException):
    """Raised in a row when the time of all is over; no `except Exception` on the way holds it up."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `Deadline` in the block when so many seconds have passed."""

    def end(*_: object) -> None:
        raise Deadline(f"the time was over, {seconds:.0f} s after this row began")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Table:
    """Rows by name; `target`.json and `target`.md hold them at any moment."""

    def __init__(self, target: Path, machine: dict[str, Any], seconds: float) -> None:
        self.target, self.machine, self.ends = target, machine, time.monotonic() + seconds
        self.rows: dict[str, dict[str, Any]] = {}

    def measure(self, name: str, row: Callable[[], dict[str, Any]]) -> None:
        """Add what `row` returns, or its error."""
        began = time.monotonic()
        try:
            with deadline(self.ends - began):
                found = row() if began < self.ends else {"error": "not begun: the time was over"}
        except (Exception, Deadline) as error:
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        self.rows[name] = found | {"seconds": round(time.monotonic() - began, 1)}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        artifacts.write_json(self.target.with_suffix(".json"), {"machine": self.machine, "rows": self.rows})
        artifacts.write_text(self.target.with_suffix(".md"), str(self))
        print(self.line(name), flush=True)

    def line(self, name: str) -> str:
        """A row of the table; curves stand in the JSON alone."""
        values = {key: value for key, value in self.rows[name].items() if not isinstance(value, list)}
        seconds = values.pop("seconds")
        said = "; ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in values.items())
        return f"| {name} | {said} | {seconds} |"

    def __str__(self) -> str:
        """The whole table."""
        machine = "; ".join(f"{key} {value}" for key, value in self.machine.items())
        return f"{machine}\n\n| row | found | s |\n|---|---|---|\n" + "\n".join(map(self.line, self.rows)) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
