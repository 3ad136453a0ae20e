"""Evaluate the base or the refined model: data/base, data/refined and data/shards -> data/eval/<model>/.

Retrieval, zero-shot classification, modality gap, linear probe, few-shot curves and WiSE-FT mixes with intervals,
per-item results and features, and the flat numbers in data/eval/<model>.json.

    python -m stages.evaluate [base|refined]
"""

from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, distributed, work_folders
from pipeline_lib.core.paths import MODELS, Paths
from pipeline_lib.core.runtime import RuntimeSettings, prepare
from pipeline_lib.evaluate import run as evaluate
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.params import check
from pipeline_lib.terminal import run_stage

SECTIONS = ("paths", "evaluate", "runtime", "tracking")


def main(params_file: Path = Path("params.yaml"), chosen: str | None = None) -> None:
    """Evaluate the chosen model, or both if none is named."""
    check.check_params(params_file)
    settings, how = config.load(params_file, EvaluateSettings), config.load(params_file, RuntimeSettings)
    distributed.relaunch_if_asked(how, "stages.evaluate", params_file, *([chosen] if chosen else []))
    prepare(seed=settings.seed, num_threads=how.num_threads, deterministic=how.deterministic)
    world = distributed.join(how.device)
    for name in [chosen] if chosen else MODELS:
        _evaluate(name, params_file, world)
    distributed.leave()


def _evaluate(name: str, params_file: Path, world: distributed.World) -> None:
    """Evaluate one model and log its numbers as `<set>/<metric>`; those of the base model carry `base/` in front."""
    paths, how = config.load(params_file, Paths), config.load(params_file, RuntimeSettings)
    settings = config.load(params_file, EvaluateSettings)
    inputs = ("base", "shard", "refine") if name == "refined" else ("base", "shard")
    upstream = artifacts.digests(paths.folders(*inputs))
    alone = work_folders.only_writer(paths.eval / name)
    with alone, tracking.stage_run(f"evaluate@{name}", params_file, upstream=upstream) as run:
        made = evaluate.run(name, paths, settings, how, world)
        if made:
            front = "" if name == "refined" else "base/"
            digests = artifacts.read_manifest(paths.shards)["parts"]
            for set_name, numbers in made["metrics"].items():
                run.dataset(set_name, digests[set_name], "evaluate")
                run.log_metrics({f"{front}{set_name}/{metric}": value for metric, value in numbers.items()})
            run.log_metrics({f"evaluate/{part}_seconds": value for part, value in made["seconds"].items()})
            run.output(made["digest"])


if __name__ == "__main__":
    run_stage(main, __doc__, choice=("model", MODELS))
