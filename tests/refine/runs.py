"""Runs of the stage on a tiny project, what they left behind, and how to stop one."""

import json
import signal

import pytest
import safetensors.torch
import torch

from pipeline_lib.core import config, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.refine import loop
from pipeline_lib.refine import run as refine
from pipeline_lib.refine.epochs import Plan, read_batch
from pipeline_lib.refine.settings import RefineSettings
from tests.conftest import run_stage
from tests.tiny_project import write_params

QUIET = {"runtime__checkpoint_every": 1000}
FROZEN = {"refine__learning_rate": 0.0, "refine__weight_decay": 0.0}


def weights(project):
    return safetensors.torch.load_file(project / "data/refined/open_clip_model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(project):
    return [json.loads(line) for line in (project / "data/refined/history.jsonl").read_text().splitlines()]


def refined(project, **values):
    write_params(project, **values)
    run_stage("refine", project)
    return weights(project)


def measured(project, **values):
    """What the stage gives the tracker."""
    found, original = {}, refine.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "run", lambda job: found.setdefault("made", original(job)))
        refined(project, **values)
    return found["made"]["metrics"]


def first_batch(project, part):
    """What the first step of a run with the parameters of `project` sees."""
    plan = Plan.of(config.load(project / "params.yaml", RefineSettings), part.valid_rows)
    return read_batch(part, plan.batches(0)[0], seed=plan.seed, epoch=0, world=World())


def interrupt_at(step, monkeypatch):
    """As SIGTERM does: `stop_requested` turns true while step number `step` is computed."""
    original = loop.take_step

    def take_step(state, data, setup):
        if state.step == step:
            monkeypatch.setattr(runtime, "_stop_signal", signal.SIGTERM)
        return original(state, data, setup)

    monkeypatch.setattr(loop, "take_step", take_step)
