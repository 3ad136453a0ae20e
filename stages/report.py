"""Say what refinement changed and how sure that is: both evaluations -> data/report (HTML, Markdown, PNG).

Verdict and headlines also go to data/report.json, DVC's metrics, and to MLflow's table under the same names; p-values
only there. Prints the verdict; `python -m pipeline_lib.report` prints the table.

    python -m stages.report
"""

import tempfile
from pathlib import Path

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, work_folders
from pipeline_lib.core.paths import LANGUAGE, Paths
from pipeline_lib.params import check
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.terminal import run_stage

SECTIONS = (
    *("paths", "data", "base", "shard", "language", "cache_teacher", "refine", "recipes", "evaluate", "report"),
    "tracking",
)


def main(params_file: Path = Path("params.yaml")) -> None:
    """Read both evaluations, write the page, print the verdict."""
    check.check_params(params_file)
    inputs = read_inputs(params_file)
    paths = config.load(params_file, Paths)
    target, folders = paths.report, paths.folders()
    others = folders.keys() - {"report", LANGUAGE}
    upstream = artifacts.digests({stage: folder for stage, folder in folders.items() if stage in others})
    took = tracking.time_taken(params_file, upstream)
    alone, scratch = work_folders.only_writer(target), tempfile.TemporaryDirectory()
    with alone, tracking.stage_run("report", params_file, upstream=upstream) as run, scratch:
        page = report.run(inputs, target)
        found = report.summary(inputs)
        artifacts.write_json(paths.report_numbers, report.measured(found))
        run.headline(found)
        copies = report.write_copies(page, Path(scratch.name), took)
        for name in sorted(artifacts.read_manifest(target)["files"]):
            folder = Path(name).parent.as_posix().removeprefix(".")
            run.log_artifact(copies.get(name, target / name), folder, on_row=name == report.HTML)
        run.output(artifacts.read_manifest(target)["digest"])
    made = f"\nComputed on: {took}." if took else ""
    print(f"\n{report.sentence(inputs)}{made}\nTable: python -m pipeline_lib.report. Page: {target / report.HTML}")


if __name__ == "__main__":
    run_stage(main, __doc__)
