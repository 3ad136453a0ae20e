"""Which parameters made data/base and data/shards: known of the output that lies there, and of no other."""

import json

import pytest

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.made_with import read_made_with, record_path, write_made_with
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.settings import DataSettings
from tests.tiny_project import ROOT


@pytest.fixture
def folder(tmp_path):
    artifacts.write_manifest(tmp_path, "shard", numbers={})
    sections = [config.load(ROOT / "params.yaml", kind) for kind in (DataSettings, ShardSettings)]
    write_made_with(tmp_path, *sections)
    return tmp_path


def test_what_is_written_is_params_yaml_with_what_it_leaves_out(folder):
    found, written = read_made_with(folder), config.read_params(ROOT / "params.yaml")
    assert found["shard"] == written["shard"]
    assert found["data"]["parts"] == written["data"]["parts"]
    assert found["data"]["evaluation"]["naming"] == {
        **dict.fromkeys(("images", "annotations", "language", "limit", "shift_of")),
        **written["data"]["evaluation"]["naming"],
    }


def test_it_lies_beside_the_folder_and_does_not_change_it(folder):
    assert record_path(folder).parent == folder.parent
    assert artifacts.verify(folder) == []


@pytest.mark.parametrize("what", ["another output", "no record", "no JSON object"])
def test_parameters_of_another_output_are_not_taken(folder, what):
    if what == "another output":
        artifacts.write_manifest(folder, "shard", numbers={"eval": 1})
    elif what == "no record":
        record_path(folder).unlink()
    else:
        record_path(folder).write_text(json.dumps([]))
    with pytest.raises(UserError, match=r"\.parameters\.json: missing, or of another .*; run `dvc repro`"):
        read_made_with(folder)
