"""Refine the base model with one recipe: data/base, data/shards and data/teacher -> data/refined.

The result is an open_clip folder with `history.jsonl` (one row per step) and `history.csv` (the same, for plots). A
killed run goes on at its last checkpoint. The recipe's loss on part `val` is logged before the first step and after the
last.

    python -m stages.refine
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, config, distributed, provenance, work_folders
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings, prepare
from pipeline_lib.params import check
from pipeline_lib.refine import run as refine
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "cache_teacher", "refine", "recipes", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml")) -> None:
    """Check the cache against the student, run the loop, save, load back and compare."""
    check.check_params(params_file)
    paths, how = config.load(params_file, Paths), config.load(params_file, RuntimeSettings)
    settings, cache = config.load(params_file, RefineSettings), config.load(params_file, CacheTeacherSettings)
    blocks = config.raw_section(params_file, "recipes")
    distributed.relaunch_if_asked(how, "stages.refine", params_file)
    prepare(seed=settings.seed, num_threads=how.num_threads, deterministic=how.deterministic)
    upstream = artifacts.digests(paths.folders("base", "shard", "language", "cache_teacher"))
    world = distributed.join(how.device)
    alone = work_folders.only_writer(paths.refined)
    with alone, tracking.stage_run("refine", params_file, upstream=upstream) as run:
        run.dataset("refine", artifacts.read_manifest(paths.shards / "refine")["digest"], "refine")
        job = refine.Job(
            paths=paths,
            settings=settings,
            cache=cache,
            blocks=blocks,
            runtime=how,
            world=world,
            run=run,
            code_digest=provenance.stage_digest("refine"),
        )
        made = refine.run(job)
        if world.is_main:
            run.log_artifact(paths.refined / artifacts.HISTORY)
            run.output(made["digest"])
    distributed.leave()


if __name__ == "__main__":
    run_stage(main, __doc__)
