"""Every row works on a CPU at toy size, where neither DVC nor MLflow can be imported; the compiler is left out."""

import json
import subprocess
import sys

import pytest

from tests.bench_gpu.place import TOY, Place
from tests.bench_gpu.rows import all_rows
from tests.tiny_project import ROOT

WITHOUT = """
import runpy, sys
sys.modules["dvc"] = sys.modules["mlflow"] = None  # an import of it fails
runpy.run_module("tests.bench_gpu", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_every_row_has_figures_and_the_bits_are_the_same(tmp_path):
    names = [name for name in all_rows(Place(tmp_path, TOY, "cpu", True)) if "compiled" not in name]
    command = [sys.executable, "-c", WITHOUT, "--toy", "--target", str(tmp_path / "found"), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert list(rows) == names
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert all(row["pairs_per_s"] > 0 < row["of_peak"] for name, row in rows.items() if name.startswith("refine"))
    assert all(value is True for key, value in rows["bits"].items() if key != "seconds")
    assert len(rows["loss curves"]["bf16"]) == TOY.curve
    assert 0 < rows["loss curves"]["bf16_distance"] < 0.05
