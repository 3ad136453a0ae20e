"""Two evaluations of the example project, and their comparison."""

import pytest

from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Evaluation, Variant
from pipeline_lib.results.paired import compare_measures
from tests import example_results


@pytest.fixture(scope="package")
def evaluations(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    example_results.make_project(root)
    return Evaluation(root / "data/eval/base"), Evaluation(root / "data/eval/refined")


@pytest.fixture(scope="package")
def settings():
    return Certainty(confidence=0.95, bootstrap_samples=300, seed=0)


@pytest.fixture(scope="package")
def comparison(evaluations, settings):
    base, refined = evaluations
    return compare_measures(Variant(base), Variant(refined), settings, sets=["eval"])
