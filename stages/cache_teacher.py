"""Compute the frozen teacher's features once: data/base and data/shards -> data/teacher and data/pixels.

Raw features of every image and of every caption of the parts `refine` and `val`, and token ids. A killed run goes on at
the next shard. Where they fit, the decoded pixels are stored beside it to save time: they change no result and stay on
their machine. `pixels` stores them alone, where the cache came from another one.

    python -m stages.cache_teacher [pixels]
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.cache_teacher import run as cache_teacher
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, config, distributed, provenance, shards, work_folders
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings, prepare
from pipeline_lib.params import check
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "cache_teacher", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml"), chosen: str | None = None) -> None:
    """Fill the cache, verify a sample of it against a fresh computation, publish it; or only store the pixels."""
    check.check_params(params_file)
    paths, how = config.load(params_file, Paths), config.load(params_file, RuntimeSettings)
    settings = config.load(params_file, CacheTeacherSettings)
    if chosen == "pixels":
        with work_folders.only_writer(paths.teacher):
            cache_teacher.run_pixels(paths, settings, how)
        return
    distributed.relaunch_if_asked(how, "stages.cache_teacher", params_file)
    prepare(seed=0, num_threads=how.num_threads, deterministic=how.deterministic)
    upstream = artifacts.digests(paths.folders("base", "shard", "language"))
    world = distributed.join(how.device)
    alone = work_folders.only_writer(paths.teacher)
    with alone, tracking.stage_run("cache_teacher", params_file, upstream=upstream) as run:
        made = cache_teacher.run(paths, settings, how, world, provenance.stage_digest("cache_teacher"))
        if world.is_main:
            digests = artifacts.read_manifest(paths.shards)["parts"]
            for part in sorted(set(shards.TRAINING_PARTS) & set(digests)):
                run.dataset(part, digests[part], "teacher")
            run.log_metrics({f"cache_teacher/{name}": value for name, value in made["metrics"].items()})
            run.output(made["digest"])
    distributed.leave()


if __name__ == "__main__":
    run_stage(main, __doc__, choice=("output", ("pixels",)))
