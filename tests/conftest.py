"""Fixtures that several test files share: a tiny project whose first stages ran once."""

import importlib
import logging
import os
import shutil

import pytest
import torch
from PIL import Image

from pipeline_lib.core import config
from pipeline_lib.refine.settings import RefineSettings
from tests import small_sets, tiny_project
from tests.tiny_model import write_tiny_clip

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("DVC_ROOT", None)  # of a shell that an experiment opened: pixels would go to that project


@pytest.fixture(autouse=True)
def _one_seed_and_plain_kernels():
    """A stage sets global switches; the next test must not inherit them."""
    threads, most_pixels = torch.get_num_threads(), Image.MAX_IMAGE_PIXELS
    yield
    for handler in [h for h in logging.root.handlers if type(h) is logging.StreamHandler]:
        logging.root.removeHandler(handler)  # a command's, on a standard error that pytest has closed
    Image.MAX_IMAGE_PIXELS = most_pixels
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


def run_stage(name, project, *arguments):
    """`main` of a stage, in `project`, as `python -m stages.<name>` there would run it."""
    before = os.getcwd()
    os.chdir(project)
    try:
        importlib.import_module(f"stages.{name}").main(project / "params.yaml", *arguments)
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a tiny open_clip model."""
    return write_tiny_clip(tmp_path_factory.mktemp("model") / "clip", seed=1)


@pytest.fixture(scope="session")
def refine_settings():
    """Section `refine` of the project's own params.yaml."""
    return config.load(tiny_project.ROOT / "params.yaml", RefineSettings)


@pytest.fixture(scope="session")
def _sharded(tmp_path_factory):
    project = tiny_project.make_project(tmp_path_factory.mktemp("sharded") / "project")
    for name in ("base", "shard"):
        run_stage(name, project)
    return project


@pytest.fixture
def sharded(_sharded, tmp_path):
    """A private copy of a tiny project in which `base` and `shard` have run."""
    return shutil.copytree(_sharded, tmp_path / "sharded")


@pytest.fixture(scope="session")
def _cached(_sharded, tmp_path_factory):
    project = shutil.copytree(_sharded, tmp_path_factory.mktemp("cached") / "project")
    run_stage("cache_teacher", project)
    return project


@pytest.fixture
def cached(_cached, tmp_path):
    """A private copy of a tiny project in which `base`, `shard` and `cache_teacher` have run."""
    return shutil.copytree(_cached, tmp_path / "cached")


@pytest.fixture(scope="session")
def joined_project(tmp_path_factory):
    """A tiny project whose captions a language model reads, run to its evaluation."""
    from tests.export.evaluated import make_joined

    return make_joined(tmp_path_factory.mktemp("joined") / "project")


@pytest.fixture(scope="session")
def chosen(tmp_path_factory):
    """A tiny project with a set of choices in every published layout, run to its evaluation; one image is missing."""
    project = tiny_project.make_project(tmp_path_factory.mktemp("chosen") / "project", num_samples=48)
    more = project / "more"
    small_sets.sugarcrepe(more / "crepe")
    small_sets.sugarcrepe(more / "crepe_pp", second=True)
    small_sets.winoground(more / "wino")
    small_sets.naturalbench(more / "natural")
    small_sets.mmvp(more / "mmvp")
    (more / "mmvp/MLLM_VLM Images/Orientation/3.jpg").unlink()
    kinds = {"crepe": "caption_choice", "crepe_pp": "caption_choice"} | dict.fromkeys(
        ("wino", "natural", "mmvp"), "image_pairs"
    )
    sets = {name: {"format": kind, "path": name} for name, kind in kinds.items()}
    tiny_project.write_params(project, data__evaluation=sets, shard__max_bad_share=0.2, evaluate__wise_ft=[0.5])
    for name in tiny_project.STAGES[:-1]:
        run_stage(name, project)
    return project
