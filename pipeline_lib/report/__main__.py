"""Print the verdict, the before/after table of what lies in data/eval, and how to use the refined model.

python -m pipeline_lib.report
"""

from pathlib import Path

from pipeline_lib.core import config
from pipeline_lib.core.paths import Paths
from pipeline_lib.report import run as report
from pipeline_lib.report import use
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.terminal import run_stage


def main(params_file: Path = Path("params.yaml")) -> None:
    """Read both evaluations and print; nothing is written."""
    inputs, paths = read_inputs(params_file), config.load(params_file, Paths)
    print(f"{report.terminal_table(inputs)}\n\n{use.what_next(paths.refined, paths.report / report.HTML)}")


if __name__ == "__main__":
    run_stage(main, __doc__)
