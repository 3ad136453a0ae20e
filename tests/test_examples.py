"""examples/own_images.py from top to bottom, with a native model and with one that transformers cannot hold."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.tiny_model import write_tiny_clip, write_tiny_hf_clip
from tests.tiny_project import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("write", "library", "folder"),
    [(write_tiny_clip, "transformers", "transformers"), (write_tiny_hf_clip, "open_clip", "open_clip")],
)
def test_own_images_from_top_to_bottom(write, library, folder, tmp_path):
    """A verdict, both models' ranks of the images, and probabilities by the library that the export is for."""
    base, target = write(tmp_path / "base"), tmp_path / "out"
    command = [sys.executable, "-m", "examples.own_images", "--base", str(base), "--to", str(target), "--images", "160"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout
    assert "image → text log rank" in said
    searched = said.split("Searched among ")[1].splitlines()
    for line, name in zip(searched[1:3], ("base", "refined"), strict=True):
        assert line.split()[0] == name
        assert len(set(line.split()[1:])) == 5
    assert Image.open(target / "search.png").size == (5 * 96, 2 * 96)
    assert f"{target}/export/{folder}, loaded by {library} alone" in said
    shares = [float(line.split("%")[0]) for line in said.split(" alone, of ")[1].splitlines()[1:]]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert ("a CLIPModel cannot hold the text tower" in said) == (library == "open_clip")
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "is there already; delete it, or name another folder by --to" in again.stderr
