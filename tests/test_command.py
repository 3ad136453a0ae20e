"""`clip-refine` leads to what is done beside the stages."""

import importlib
import tomllib
from pathlib import Path

import pytest

import pipeline_lib.__main__ as command

ROOT = Path(__file__).parents[1]


def test_every_verb_leads_to_a_command_that_helps(capsys):
    for verb, module in command.VERBS.items():
        assert f"clip-refine {verb} " in command.__doc__
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main(["--help"])
        assert ended.value.code == 0
        assert "usage:" in capsys.readouterr().out


def test_the_package_has_the_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["clip-refine"].split(":")
    assert getattr(importlib.import_module(module), function) is command.main


def test_without_a_verb_it_says_which_there_are(capsys):
    command.main([])
    assert capsys.readouterr().out.strip() == command.__doc__.strip()


def test_an_unknown_verb_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["serch"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: clip-refine: no verb `serch`; did you mean `search`?\n"
