"""What is generated is up to date, and the command that writes it changes nothing twice."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.__main__ import main
from pipeline_lib.params.generate import find_stale, write_generated

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A copy of what is generated and what it is generated from, up to date."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    for folder in ("ablations", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    write_generated(tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def contents(project):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in project.rglob("*") if path.is_file()}


def test_the_projects_own_files_are_up_to_date():
    assert [path.as_posix() for path in find_stale(ROOT)] == [], "out of date; run `make generate`"


def test_writing_twice_changes_nothing(project):
    before = contents(project)
    assert write_generated(project) == []
    assert contents(project) == before
    assert find_stale(project) == []


def test_a_new_recipe_makes_nothing_stale_and_its_file_comes_with_the_next_writing(project):
    block = "  mine: {weight: 1.0}\n"
    edit(project / "params.yaml", "  logit_kd: {}\n", f"  logit_kd: {{}}\n{block}")
    assert find_stale(project) == []
    assert Path("ablations/mine.yaml") in write_generated(project)
    assert config.read_params(project / "ablations/mine.yaml")["refine"]["recipe"] == "mine"
    assert all(block in path.read_text() for path in (project / "ablations").glob("[!c]*.yaml"))
    assert write_generated(project) == []
    edit(project / "params.yaml", block, "")
    assert find_stale(project) == [Path("ablations/mine.yaml")]
    write_generated(project)
    assert not (project / "ablations/mine.yaml").exists()


@pytest.mark.parametrize("key", ["batch_size: 64\n  micro_batch", "num_workers: 2"])
def test_a_changed_value_is_an_edit_and_the_command(project, key):
    edit(project / "params.yaml", key, re.sub(r"\d+", "7", key))
    stale = {path.as_posix() for path in find_stale(project)}
    assert {"docs/params.md", "ablations/hycd.yaml", "ablations/flickr8k.yaml"} <= stale
    assert "docs/params.schema.json" not in stale
    write_generated(project)
    assert find_stale(project) == []
    assert config.read_params(project / "ablations/coco_vit_b32.yaml")["refine"]["batch_size"] == 512


def test_an_entry_of_the_users_own_is_an_edit_and_the_command(project):
    with (project / "ablations/changes.yaml").open("a") as file:
        file.write("\nlonger: {sentence: Three times., changes: {refine.epochs: 3}}\n")
    assert find_stale(project) == [Path("ablations/longer.yaml")]
    assert write_generated(project) == [Path("ablations/longer.yaml")]
    assert config.read_params(project / "ablations/longer.yaml")["refine"]["epochs"] == 3


def test_an_edited_file_is_stale_and_a_file_of_the_users_stays(project):
    shutil.copyfile(project / "params.yaml", project / "ablations/of_the_user.yaml")
    edit(project / "ablations/hycd.yaml", "  epochs: 1\n", "  epochs: 2\n")
    (project / "docs/params.md").unlink()
    assert find_stale(project) == [Path("ablations/hycd.yaml"), Path("docs/params.md")]
    write_generated(project)
    assert find_stale(project) == []
    assert (project / "ablations/of_the_user.yaml").exists()


def test_the_command_checks_and_writes(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    main(["--check"])
    assert capsys.readouterr().out == ""
    edit(Path("params.yaml"), "num_examples: 8", "num_examples: 9")
    before = contents(project)
    with pytest.raises(UserError, match=r"ablations/hycd\.yaml, .*docs/params\.md: out of date; run `make generate`$"):
        main(["--check"])
    assert contents(project) == before
    main([])
    assert "docs/params.md\n" in capsys.readouterr().out
    main([])
    assert capsys.readouterr().out == "nothing to change\n"


def test_the_command_as_a_user_calls_it(project):
    edit(project / "params.yaml", "num_examples: 8", "num_examples: 9")
    command = [sys.executable, "-m", "pipeline_lib.params"]
    options = {"capture_output": True, "text": True, "cwd": project, "env": {"PYTHONPATH": str(ROOT)}}
    checked = subprocess.run([*command, "--check"], **options)
    assert checked.returncode == 1
    assert checked.stderr.startswith("error: ablations/")
    assert checked.stderr.count("\n") == 1
    explained = subprocess.run([*command, "--help"], **options)
    assert explained.returncode == 0
    assert "ablations/<name>.yaml" in explained.stdout
