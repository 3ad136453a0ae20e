"""Code that was edited after the run is refused, by the dvc.lock that DVC itself wrote."""

import shutil
from pathlib import Path

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.results.recorded import check_code

ROOT = Path(__file__).parents[2]
STAGE = """\
schema: '2.0'
stages:
  shard:
    cmd: python -m stages.shard
    deps:
    - {path: pipeline_lib/code, hash: md5, md5: FOLDER, size: 6, nfiles: 2}
    - {path: pipeline_lib/gone, hash: md5, md5: 0123, size: 6, nfiles: 2}
  evaluate@base:
    cmd: python -m stages.evaluate base
    deps:
    - {path: pipeline_lib/one.py, hash: md5, md5: FILE, size: 6}
"""


@pytest.fixture
def project(tmp_path):
    """A run as DVC records it: the hashes are those of DVC's own code."""
    from dvc.repo import Repo

    code = tmp_path / "pipeline_lib"
    (code / "code" / "deep").mkdir(parents=True)
    for name in ("code/a.py", "code/deep/b.j2", "one.py"):
        (code / name).write_text(name)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        hashes = {name: str(repo_hash(repo, code / name)) for name in ("code", "one.py")}
    text = STAGE.replace("FOLDER", hashes["code"]).replace("FILE", hashes["one.py"])
    (tmp_path / "dvc.lock").write_text(text)
    shutil.copyfile(ROOT / ".dvcignore", tmp_path / ".dvcignore")
    (code / "code" / "__pycache__").mkdir()
    (code / "code" / "__pycache__" / "a.pyc").write_text("compiled")
    (code / "code" / ".a.py.swp").write_text("an editor's")
    return tmp_path


def repo_hash(repo, path):
    from dvc_data.hashfile.build import build

    _, _, entry = build(repo.cache.local, str(path), repo.cache.local.fs, "md5")
    return entry.hash_info.value


def test_what_was_not_edited_passes_with_or_without_a_record(project):
    check_code(project)
    (project / "dvc.lock").unlink()
    (project / "pipeline_lib/one.py").write_text("edited")
    check_code(project)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "pipeline_lib/one.py",
            r"^pipeline_lib/one.py: edited since stage `evaluate@base` ran, .*; run `dvc repro`, or",
        ),
        ("pipeline_lib/code/deep/b.j2", r"^pipeline_lib/code: edited since stage `shard` ran, by dvc.lock; run"),
    ],
)
def test_what_was_edited_is_named_with_the_stage_that_ran_without(project, file, said):
    (project / file).write_text("edited")
    with pytest.raises(UserError, match=said):
        check_code(project)


def test_a_file_that_was_added_to_the_code_is_an_edit(project):
    (project / "pipeline_lib/code/c.py").write_text("")
    with pytest.raises(UserError, match="pipeline_lib/code: edited"):
        check_code(project)
