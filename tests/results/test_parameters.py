"""The parameters that decide results."""

from pipeline_lib.results.parameters import dotted_keys, read_parameters
from tests import example_results


def test_parameters_hold_the_recipe_that_is_used_and_no_other(tmp_path):
    found = read_parameters(example_results.ROOT / "params.yaml")
    assert list(found["recipes"]) == [found["refine"]["recipe"]]
    assert dotted_keys(found)["refine.seed"] == 0
    assert not {"paths", "runtime", "tracking"} & set(found)
