"""The rows of the comparison: what was measured beside what it should be, kept and printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from tests.peers.sides import Used


def alternate(rounds: int, *calls: Callable[[], Used]) -> list[list[Used]]:
    """What each call costs in each round, taken in turns; what a first round costs is left out."""
    found: list[list[Used]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, used in zip(calls, found, strict=True):
            one = call()
            used += [one] if number else []
    return found


def median(used: Sequence[Used]) -> float:
    """The median of CPU seconds."""
    return statistics.median(one.cpu for one in used)


@dataclass
class Table:
    """Rows by name, written to `path` each time that one is added."""

    path: Path
    settings: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)  # what rows are derived from
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Go on with what an earlier run with the same settings found."""
        known = artifacts.read_json(self.path) if self.path.is_file() else {}
        if known.get("settings") == self.settings:
            self.facts, self.rows = known["facts"], known["rows"]

    def compare(self, name: str, goal: float, peer: Sequence[Used], own: Sequence[Used], note: str) -> None:
        """Add how often the peer's CPU time holds the project's, by neighbouring turns; beside it that of the clock."""
        cpu = [p.cpu / o.cpu for p, o in zip(peer, own, strict=True)]
        wall = statistics.median(p.wall / o.wall for p, o in zip(peer, own, strict=True))
        seconds = f"{median(peer):.1f} s against {median(own):.1f} s; "
        self.add(name, cpu, goal, seconds + note, by_the_clock=round(wall, 3))

    def add(
        self, name: str, values: Sequence[float], goal: float, note: str, *, at_most: bool = False, **more: Any
    ) -> None:
        """Add a row: median, least and largest of `values`, which should be at least (or at most) `goal`."""
        middle = statistics.median(values)
        met = middle <= goal if at_most else middle >= goal
        spread = {"median": middle, "min": min(values), "max": max(values)}
        self.rows[name] = {
            **{key: round(value, 3) for key, value in spread.items()},
            "n": len(values),
            "goal": f"{'≤' if at_most else '≥'} {goal}",
            "met": met,
            "note": note,
            **more,
        }
        artifacts.write_json(self.path, {"settings": self.settings, "facts": self.facts, "rows": self.rows})
        print(self.line(name), flush=True)

    def line(self, name: str) -> str:
        """A row as a line of the table in Markdown."""
        row = self.rows[name]
        ratio = f"{row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}], {row['n']}"
        clock = f"{row['by_the_clock']:.2f}" if "by_the_clock" in row else ""
        met = "met" if row["met"] else "**missed**"
        return f"| {name} | {ratio} | {clock} | {row['goal']} | {met} | {row['note']} |"

    def __str__(self) -> str:
        """The whole table."""
        head = "| | CPU: median [least, largest], n | by the clock | goal | | |\n|---|---|---|---|---|---|\n"
        return head + "\n".join(map(self.line, self.rows))
