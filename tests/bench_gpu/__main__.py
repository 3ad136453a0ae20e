"""Run all rows, or those that are named; see the package."""

from __future__ import annotations

import argparse
import faulthandler
import os
import tempfile
import time
from pathlib import Path

import torch

from pipeline_lib.core import provenance, runtime
from tests.bench_gpu import __doc__ as what
from tests.bench_gpu.place import TOY, Place, Sizes
from tests.bench_gpu.rows import all_rows
from tests.bench_gpu.table import Table
from tests.tiny_project import ROOT

BEGAN = time.monotonic()


def main() -> None:
    """Measure until the time is over."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench_gpu", description=what, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="when to end at the latest (default: %(default)s)")
    parser.add_argument("--target", type=Path, default=ROOT / "bench_gpu", help="without the ending (.json, .md)")
    parser.add_argument("--toy", action="store_true", help="tiny, on the CPU: figures that mean nothing")
    parser.add_argument("rows", nargs="*", metavar="row", help="default: all")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--toy` tries the rows on a CPU")
    runtime.prepare(seed=0, num_threads=None, deterministic=True)
    device, target = "cpu" if options.toy else "cuda", options.target.resolve()
    machine = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu, toy"}
    machine |= {"cores": str(runtime.available_cores()), **provenance.package_versions()}
    with tempfile.TemporaryDirectory(prefix="bench_gpu") as folder:
        os.chdir(folder)
        place = Place(Path(folder), TOY if options.toy else Sizes(), device, options.toy)
        rows = all_rows(place)
        if set(options.rows) - set(rows):
            parser.error(f"unknown row {', '.join(set(options.rows) - set(rows))}; there are {', '.join(rows)}")
        left = 60 * options.minutes - (time.monotonic() - BEGAN)
        faulthandler.dump_traceback_later(left, exit=True)  # a kernel or compiler may hold up the row's own alarm
        table = Table(target, machine, left - 10)  # and 10 s to clean up
        for name in options.rows or rows:
            table.measure(name, rows[name])


if __name__ == "__main__":
    main()
