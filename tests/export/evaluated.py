"""A tiny project that ran to its evaluation, and a way to stand in it."""

import os
from contextlib import contextmanager

from tests import tiny_project
from tests.conftest import run_stage
from tests.language.asked import ASKED
from tests.tiny_model import write_tiny_language

WISE_FT = [0.25, 0.5]


@contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def make_joined(folder):
    """Texts go through a tiny decoder with a prompt and an adapter with a block."""
    adapter = {"depth": 1, "expansion": 2, "dropout": 0.0, "learning_rate": 1e-2}
    asked = {**ASKED, "refine__adapter": adapter, "language__prompt": "a picture of {} near"}
    project = tiny_project.make_project(folder, num_samples=48, **asked, evaluate__wise_ft=WISE_FT)
    write_tiny_language(project / "llama")
    (project / "llama/LICENSE").write_text("terms")
    for stage in ("base", "shard", "language", "cache_teacher", "refine", "evaluate"):
        run_stage(stage, project)
    return project


def make_evaluated(folder, **options):
    project = tiny_project.make_project(folder, evaluate__wise_ft=WISE_FT, **options)
    for stage in ("base", "shard", "cache_teacher", "refine", "evaluate"):
        run_stage(stage, project)
    return project
