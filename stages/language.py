"""Materialise a language model that reads captions in place of the base's text tower -> data/language.

Optional: the stage exists where params.yaml says `language.stages: {make: {}}`. The folder loads with no network and
without code of its own; that its attention is what is asked is tried out.

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
    """Read the model, write it, load it back and compare."""
    check.check_params(params_file)
    paths, how = config.load(params_file, Paths), config.load(params_file, RuntimeSettings)
    settings = config.load(params_file, LanguageSettings)
    prepare(seed=0, num_threads=how.num_threads, deterministic=how.deterministic)
    with work_folders.only_writer(paths.language), tracking.stage_run("language", params_file) as run:
        language.run(settings, paths.language)
        run.output(artifacts.read_manifest(paths.language)["digest"])


if __name__ == "__main__":
    run_stage(main, __doc__)
