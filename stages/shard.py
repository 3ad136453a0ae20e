"""Write the image-text set and the evaluation sets as tar shards: data.root, data.evaluation_root -> data/shards.

One folder per part (but `base`) and per evaluation set, each with a manifest, and beside data/shards which parameters
made it. Needs data/base, which lists the images that it was trained on: none of them may be in a part. A killed run
goes on at the next shard.

    python -m stages.shard
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, made_with, provenance, shards, work_folders
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.params import check
from pipeline_lib.shard import manifests
from pipeline_lib.shard import run as shard
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.settings import DataSettings
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "data", "shard", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml")) -> None:
    """Write all parts and sets, and log what each of them holds."""
    check.check_params(params_file)
    paths, data = config.load(params_file, Paths), config.load(params_file, DataSettings)
    settings, how = config.load(params_file, ShardSettings), config.load(params_file, RuntimeSettings)
    of_base = artifacts.read_manifest(paths.base)
    base, source = of_base["digest"], of_base.get("model", {}).get("source", {})
    code = provenance.stage_digest("shard")
    choices = [config.raw_section(params_file, name) for name in ("data", "shard")]
    alone = work_folders.only_writer(paths.shards)
    with alone, tracking.stage_run("shard", params_file, upstream={"base": base}) as run:
        manifest = shard.run(
            data,
            settings,
            trained_on=paths.base / artifacts.TRAINED_ON,
            trains_again=source.get("kind") == "local_dir",
            target=paths.shards,
            fingerprint=artifacts.digest([base, code, choices, provenance.package_versions()]),
            progress=how.progress,
        )
        for part, numbers in manifest["numbers"].items():
            run.log_metrics({f"shard/{part}/{name}": count for name, count in numbers.items()})
            run.dataset(part, manifest["parts"][part], "refine" if part in shards.TRAINING_PARTS else "evaluate")
        for name in manifests.LISTS:
            run.log_artifact(paths.shards / name)
        made_with.write_made_with(paths.shards, data, settings)
        run.output(manifest["digest"])


if __name__ == "__main__":
    run_stage(main, __doc__)
