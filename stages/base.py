"""Materialise the pre-trained model of params.yaml as an open_clip folder: `python -m stages.base`.

Reads section `base` (and, for the demo base, part `base` of the source data); writes `paths.base`, and
beside it which parameters made it.
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.base import run as base
from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, config, made_with, runtime, work_folders
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.params import check
from pipeline_lib.sources.settings import DataSettings
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "data", "base", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml")) -> None:
    """Write the base model and its manifest."""
    check.check_params(params_file)
    paths, data = config.load(params_file, Paths), config.load(params_file, DataSettings)
    settings, how = config.load(params_file, BaseSettings), config.load(params_file, RuntimeSettings)
    seed = settings.demo.seed if settings.demo else 0  # published weights are not drawn
    runtime.prepare(seed=seed, num_threads=how.num_threads, deterministic=how.deterministic)
    with work_folders.only_writer(paths.base), tracking.stage_run("base", params_file) as run:
        device = runtime.pick_device(how.device)
        made = base.run(settings, data, paths.base, device=device, num_workers=how.num_workers, progress=how.progress)
        for epoch, loss in enumerate(made.losses):
            run.log_metrics({"base/heads_loss": loss}, step=epoch)
        scale, images = made.clip.facts["logit_scale"], len(made.trained_on)
        run.log_metrics({"base_run/logit_scale": scale, "base_run/num_images": images})
        if made.trained_on:
            run.dataset("base", artifacts.sha256_file(paths.base / artifacts.TRAINED_ON), "base")
        run.log_artifact(paths.base / artifacts.MANIFEST)
        made_with.write_made_with(paths.base, data, settings)
        run.output(artifacts.read_manifest(paths.base)["digest"])


if __name__ == "__main__":
    run_stage(main, __doc__)
