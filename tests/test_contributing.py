"""CONTRIBUTING.md is true: a recipe added exactly as it says leaves everything green, with four files touched."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.tiny_project import ROOT

pytestmark = pytest.mark.slow
KNOW_RECIPES = (
    "refine/test_recipes.py",
    "refine/test_gradients.py",
    "core/test_schema.py",
    "core/test_config.py",
    "params",
    "compare",
    "report",
    "test_docs.py",
    "test_pipeline_graph.py",
)


def steps():
    """File and text of each step under "A recipe"."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("### A recipe\n")[1].split("\n### ")[0]
    return re.findall(r"^\d\. `([^`]+)`.*?^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def add(path, text):
    """As a contributor would: a function at the end, a block at the end of `recipes:`, a line on top of the list."""
    found = path.read_text()
    if path.name == "params.yaml":
        found, count = re.subn(r"(?m)(^recipes:.*\n(?:[ #].*\n)+)", lambda match: match[1] + text, found)
    elif path.name == "CHANGELOG.md":
        found, count = re.subn(r"(?m)\n(- )", lambda match: "\n" + text + match[1], found, count=1)
    else:
        found, count = f"{found}\n\n{text}", 1
    assert count == 1
    path.write_text(found)


def call(project, *command):
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_a_recipe_is_a_function_a_block_its_test_and_a_line(tmp_path):
    project = tmp_path / "project"
    for name in call(ROOT, "git", "ls-files").splitlines():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, project / name)
    call(project, "git", "init", "-q")
    call(project, "git", "add", ".")
    for name, text in steps():
        add(project / name, text)
    touched = call(project, "git", "diff", "--name-only").split()
    assert touched == ["CHANGELOG.md", "params.yaml", "pipeline_lib/refine/recipes.py", "tests/refine/test_recipes.py"]
    python = (sys.executable, "-m")
    call(project, *python, "ruff", "check", ".")
    call(project, *python, "ruff", "format", "--check", ".")
    said = call(project, *python, "pytest", "-q", "-n", "2", *(f"tests/{name}" for name in KNOW_RECIPES))
    assert "failed" not in said
    assert "angular_kd" in call(
        project, sys.executable, "-c", "from pipeline_lib.refine.recipes import RECIPES; print(*RECIPES)"
    )
