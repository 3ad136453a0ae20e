"""Command line of the calibration; see `python -m pipeline_lib.calibrate --help`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import calibrate, terminal
from pipeline_lib.calibrate import study
from pipeline_lib.calibrate.study import Alarms
from pipeline_lib.results import power


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.calibrate",
        description=calibrate.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 500, 5000], help="images (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=200, help="trials of each world (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="data/eval: compare statistics of its stored ranks instead")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables as they are counted.

    Raises:
        UserError: The folder holds no evaluation.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.folder is not None:
        print(f"{'share of draws with p < .05':38} {'images':>6}  " + "  ".join(f"{n:>18}" for n in study.STATISTICS))
        for name, direction, size, shares in study.compare_statistics(options.folder, options.sizes, options.runs):
            print(f"{name + ': ' + direction:38} {size:6}  " + "  ".join(f"{100 * share:16.0f} %" for share in shares))
        return
    print("false alarms and power; percent of runs; the level claimed is 5 %\n")
    together: dict[str, Alarms] = {}
    for world in study.all_worlds(options.sizes):
        found = study.study(world, options.runs)
        for kind, one in _kinds(found).items():
            together.setdefault(kind, Alarms()).join(one)
        print(_lines(found), flush=True)
    print("\n".join(["all of these together", *(_shares(kind, one) for kind, one in together.items())]))


def _kinds(found: study.Study) -> dict[str, Alarms]:
    """Return what was counted, by how nothing differs."""
    rows = {**found.alarms, "one run of a training that helps nothing": found.one_run}
    rows[f"the same, {study.SEEDS} seeds together"] = found.several
    return {kind: one for kind, one in rows.items() if one.runs}


def _shares(kind: str, one: Alarms) -> str:
    shares = f"rose {_percent(one.rose / one.runs)}, fell {_percent(one.fell / one.runs)}"
    return f"  {kind:42} {shares}; false {_percent(one.false / one.runs)} (at most {_percent(one.upper)})"


def _lines(found: study.Study) -> str:
    """Render what was counted on one world."""
    lines = [f"{found.world.num_images} images, {found.world.name}"]
    lines += [_shares(kind, one) for kind, one in _kinds(found).items()]
    for label, row in found.power.items():
        *shares, smallest = row.tolist()
        effects = ", ".join(
            f"{100 * effect:g} in {_percent(share)}" for effect, share in zip(power.EFFECTS, shares, strict=True)
        )
        least = "not in every run" if math.isnan(smallest) else f"{100 * smallest:.1f} points"
        lines.append(f"  {label:42} finds a change of points: {effects}; 80 %: {least}")
    return "\n".join([*lines, ""])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    with terminal.one_line_errors():
        main()
