"""How near each stage comes to what the machine can do: ratios within one run, printed as a table, into bench.json.

    python -m tests.bench [part ...]

Both sides of a ratio are measured here, alternating, and medians are compared, so that a slow or busy machine moves
both. Nothing is asserted: a test must not depend on the clock. Sizes are a CPU's; docs/machines.md says what a GPU must
show.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline_lib.core import artifacts, runtime
from tests.bench import evaluation, loop, speedups, stages, towers, tracking
from tests.bench.inputs import project, quiet, write_vit
from tests.peers.inputs import Sizes, make
from tests.peers.training import make_inputs
from tests.tiny_project import ROOT

RESULTS: dict[str, dict[str, object]] = {}


def report(name: str, ratio: float, goal: float, note: str) -> None:
    """Print and keep one ratio; larger is better."""
    met = ratio >= goal
    RESULTS[name] = {"ratio": round(ratio, 4), "goal": goal, "met": met, "note": note}
    print(f"{name:<36} {ratio:7.3f}  goal {goal:5.2f}  {'met' if met else 'MISSED':<6}  {note}", flush=True)


class Parts:
    """One method a part, in the order in which they run; inputs are made when they are first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._photos: Path | None = None

    def photos(self, stage: str = "shard") -> Path:
        """A project on generated photographs with ViT-B/32, run up to `stage`."""
        if self._photos is None:
            self._photos = project(self.root / "photos", write_vit(self.root / "vit", "ViT-B-32"), 120)
            quiet("base", self._photos)
            quiet("shard", self._photos)
        if stage == "cache_teacher" and not (self._photos / "data/teacher").exists():
            quiet(stage, self._photos)
        return self._photos

    def default(self) -> None:
        """The model and set of `make run`, from its outputs."""
        if not (ROOT / "data/teacher/manifest.json").is_file():
            print("default model: run `make run` first, then `python -m tests.bench default`")
            return
        loop.loop_against_bare(report, "default", ROOT, 8)
        loop.allocator(report, ROOT)

    def loop(self) -> None:
        """ViT-B/32, everything cached, against bare arithmetic."""
        loop.loop_against_bare(report, "vit_b32", self.photos("cache_teacher"), 5)

    def speedups(self) -> None:
        """Steps and cache of ViT-B/32, steps of the default, without and with what makes them faster."""
        world = make(self.root / "flickr", Sizes(pairs=64, images=4, labelled=8))
        make_inputs(world)
        speedups.of_a_step(report, "vit_b32", world.root, 5)
        small = project(self.root / "small", world.root / "clip", 100, shard__samples_per_shard=5)
        quiet("base", small)
        quiet("shard", small)
        speedups.across_tars(report, small)
        speedups.grouping(report)
        if not (ROOT / "data/teacher/manifest.json").is_file():
            print("default model: run `make run` first, then `python -m tests.bench speedups`")
            return
        speedups.of_a_step(report, "default", ROOT, 8, ("text_groups", "no_fill"))  # its towers have other last layers

    def towers(self) -> None:
        """Other arithmetic in the towers, of ViT-B/32 and of the default."""
        towers.bf16(report, "vit_b32", write_vit(self.root / "towers", "ViT-B-32"), 16)
        if not (ROOT / "data/base/manifest.json").is_file():
            print("default model: run `make run` first, then `python -m tests.bench towers`")
            return
        towers.bf16(report, "default", ROOT / "data/base", 64)

    def caching(self) -> None:
        """The teacher cache."""
        stages.caching(report, self.photos())

    def sharding(self) -> None:
        """Tars."""
        stages.sharding(report, self.root)

    def evaluation(self) -> None:
        """Everything after the embedding."""
        evaluation.measure(report)

    def tracking(self) -> None:
        """What MLflow costs."""
        tracking.measure(report)

    def startup(self) -> None:
        """From the command to the work."""
        stages.startup(report, self.root)

    def noop(self) -> None:
        """`dvc repro` of the default where all is up to date."""
        if not (ROOT / "data/report.json").is_file():
            print("nothing to do: run `make run` first, then `python -m tests.bench noop`")
            return
        stages.nothing_to_do(report, ROOT)

    def growth(self) -> None:
        """Cost per sample and memory as the set grows."""
        stages.growth(report, self.root, ROOT / "bench_growth.png")


def main() -> None:
    """Run the named parts, or all; write bench.json."""
    names = [name for name, value in vars(Parts).items() if isinstance(value, Callable) and name[0] != "_"]
    names.remove("photos")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(names)} (default: all)")
    chosen = parser.parse_args().parts or names
    if set(chosen) - set(names):
        parser.error(f"unknown part {', '.join(sorted(set(chosen) - set(names)))}; there are {', '.join(names)}")
    runtime.prepare(seed=0, num_threads=None, deterministic=True)
    started = time.perf_counter()
    known = json.loads((ROOT / "bench.json").read_text()) if (ROOT / "bench.json").is_file() else {}
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        parts = Parts(Path(folder))
        for name in chosen:
            getattr(parts, name)()
            artifacts.write_json(ROOT / "bench.json", {**known, **RESULTS})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - started:.0f} s, {peak:.1f} GB at most; written to bench.json")


if __name__ == "__main__":
    main()
