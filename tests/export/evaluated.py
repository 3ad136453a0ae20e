"""A tiny project that ran to its evaluation, and a way to stand in it."""

import os
from contextlib import contextmanager

from tests import tiny_project
from tests.conftest import run_stage

WISE_FT = [0.25, 0.5]


@contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def make_evaluated(folder, **options):
    project = tiny_project.make_project(folder, evaluate__wise_ft=WISE_FT, **options)
    for stage in ("base", "shard", "cache_teacher", "refine", "evaluate"):
        run_stage(stage, project)
    return project
