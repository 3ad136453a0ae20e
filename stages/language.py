"""Materialise a language model that reads captions in place of the base's text tower -> data/language.

Optional: the stage exists where params.yaml says `language.stages: {make: {}}`. The folder loads with no network and
without code of its own; that its attention is what is asked is tried out. With `language.tune` it is tuned on pairs of
captions of data/shards; a killed run goes on at its last checkpoint.

    python -m stages.language
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, work_folders
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings, prepare
from pipeline_lib.language import run as language
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.params import check
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "language", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml")) -> None:
    """Read the model, tune it if that is asked, write it, load it back and compare."""
    check.check_params(params_file)
    paths, how = config.load(params_file, Paths), config.load(params_file, RuntimeSettings)
    settings = config.load(params_file, LanguageSettings)
    seed = settings.tune.seed if settings.tune else 0
    prepare(seed=seed, num_threads=how.num_threads, deterministic=how.deterministic)
    upstream = artifacts.digests(paths.folders("shard"))
    alone = work_folders.only_writer(paths.language)
    with alone, tracking.stage_run("language", params_file, upstream=upstream) as run:
        made = language.run(language.Job(paths=paths, settings=settings, runtime=how, run=run))
        run.log_metrics({f"language_run/{name}": value for name, value in made["metrics"].items()})
        run.output(made["digest"])


if __name__ == "__main__":
    run_stage(main, __doc__)
