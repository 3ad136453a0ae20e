"""Print the verdict and the before/after table of what lies in data/eval: `python -m pipeline_lib.report`."""

from pathlib import Path

from pipeline_lib import report
from pipeline_lib.core import config
from pipeline_lib.core.runtime import run_stage


def main(params_file: Path = Path("params.yaml")) -> None:
    """Read both evaluations and print; nothing is written."""
    inputs = report.read(params_file)
    print(f"{report.terminal_table(inputs)}\n\n{config.load(params_file, 'paths').report / report.HTML}")


if __name__ == "__main__":
    run_stage(main, __doc__)
