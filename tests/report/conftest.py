"""The example project, its page as a stage writes it, and what a page is made of."""

from pathlib import Path

import pytest

from pipeline_lib.report import run as report
from tests import example_results


@pytest.fixture(scope="package")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    example_results.make_project(root)
    return root


@pytest.fixture(scope="package")
def written(project):
    """The page as a stage writes it, with the terminal's text."""
    with pytest.MonkeyPatch.context() as patch:
        inputs = example_results.read_report_inputs(project, patch)
        report.run(inputs, Path("data/report"))
        return project / "data/report", report.terminal_table(inputs), inputs
