"""Run all parts, or those that are named, and write bench_peers.json; see the package."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

from pipeline_lib.core import runtime
from tests.peers import __doc__ as what
from tests.peers import caching, evaluating, inputs, training
from tests.peers.sides import PYTHON
from tests.peers.table import Table
from tests.tiny_project import ROOT

PARTS = {
    "whole": training.whole,
    "agreement": training.agreement,
    "distillation": training.distillation,
    "contrastive": training.contrastive,
    "released": training.released,
    "embedding": caching.embedding,
    "break_even": caching.break_even,
    "retrieval": evaluating.retrieval,
    "zero_shot": evaluating.zero_shot,
}


def main() -> None:
    """Measure; all parts read the outputs of the first stages, which `whole` makes anew."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=what)
    for one in dataclasses.fields(inputs.Sizes):
        parser.add_argument(f"--{one.name}", type=int, default=one.default, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the project is made, and taken from if it is there")
    parser.add_argument("--target", type=Path, default=ROOT / "bench_peers.json", help="(default: bench_peers.json)")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    chosen = vars(parser.parse_args())
    parts, kept, target = chosen.pop("parts") or list(PARTS), chosen.pop("folder"), chosen.pop("target")
    if set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(set(parts) - set(PARTS)))}; there are {', '.join(PARTS)}")
    if not PYTHON.is_file():
        parser.error(f"no {PYTHON}; run `make bench-peers`, which makes it")
    sizes, began = inputs.Sizes(**chosen), time.perf_counter()
    runtime.prepare(seed=0, num_threads=sizes.threads, deterministic=True)
    settings = {key: value for key, value in dataclasses.asdict(sizes).items() if key != "rounds"}
    table = Table(target.resolve(), settings)  # each row says its number of turns
    with tempfile.TemporaryDirectory(prefix="peers") as temporary:
        world = inputs.World((kept or Path(temporary)).resolve() / "project", sizes)
        if not world.root.exists():
            inputs.make(world.root, sizes)
        if "whole" not in parts and not world.paths.teacher.is_dir():
            training.make_inputs(world)
        os.chdir(world.root)  # the evaluation sets are read where they lie, as params.yaml names them
        for name in parts:
            PARTS[name](table, world)
    print(f"\n{table}\n\n{time.perf_counter() - began:.0f} s; written to {target}")


if __name__ == "__main__":
    main()
