"""Parameters that are not those which made an output are named, those that came and those that went as well."""

import copy
from pathlib import Path

import pytest

from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.made_with import write_made_with
from pipeline_lib.results.guards import check_made_with
from pipeline_lib.results.parameters import changed, read_parameters
from pipeline_lib.sources.settings import DataSettings
from tests.tiny_project import ROOT, change

PARAMS = ROOT / "params.yaml"


@pytest.fixture
def folder(tmp_path):
    artifacts.write_manifest(tmp_path / "base", "base")
    write_made_with(tmp_path / "base", *(config.load(PARAMS, kind) for kind in (DataSettings, BaseSettings)))
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"data.limit": 48}, "data.limit is 48, was None"),
        ({"base.demo": None}, "base.demo.image_size is None, was 96; "),
        ({"data.parts": {"refine": "refine", "val": "val", "eval": "eval"}}, "data.parts.base is None, was base"),
        ({"data.evaluation": {}}, "data.evaluation.naming.format is None, was openmoji; "),
        ({"data.evaluation.naming.split": "lines"}, "data.evaluation.naming.split is lines, was moved"),
        ({"base.demo.learning_rate": 0.1, "base.demo.seed": 1}, "learning_rate is 0.1, was 0.001; base.demo.seed is 1"),
    ],
)
def test_an_edit_is_named_with_both_values(folder, edit, said):
    parameters = change(copy.deepcopy(read_parameters(PARAMS)), edit)
    with pytest.raises(UserError) as raised:
        check_made_with(Path("params.yaml"), parameters, [folder])
    assert str(raised.value).startswith(f"params.yaml: not what made {folder}: ")
    assert said in str(raised.value)


def test_what_decided_nothing_there_and_what_says_the_same_passes(folder):
    parameters = read_parameters(PARAMS)
    check_made_with(PARAMS, parameters, [folder])
    edited = change(copy.deepcopy(parameters), {"refine.seed": 7, "shard.samples_per_shard": 9, "data.limit": None})
    edited["data"]["evaluation"]["naming"]["images"] = None
    check_made_with(PARAMS, edited, [folder])


def test_dotted_names_of_a_lock_tell_of_what_they_name_alone():
    lock = {"recipes.hycd": {"alpha": 0.5, "logits": "raw"}, "refine": {"seed": 0}}
    now = {"recipes": {"hycd": {"alpha": 0.4, "logits": "raw"}, "rafa": {}}, "refine": {"seed": 0, "new": 1}}
    assert changed(lock, now) == ["recipes.hycd.alpha is 0.4, was 0.5"]
    assert changed(lock, {"recipes": {"rafa": {}}, "refine": {"seed": 0}}) == []  # refine.recipe says that
    assert changed({"evaluate": {"few_shot": None}}, {"evaluate": {"few_shot": {"draws": 3}}}) == [
        "evaluate.few_shot.draws is 3, was None"
    ]
