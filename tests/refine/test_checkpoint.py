"""Killed and resumed is bitwise uninterrupted, and a checkpoint runs no code."""

import glob
import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest
import torch

from pipeline_lib.core import runtime
from pipeline_lib.refine.checkpoint import CHECKPOINT
from tests.cached_project import stage_process
from tests.conftest import run_stage
from tests.refine.runs import QUIET, equal, history, interrupt_at, refined, weights


@pytest.mark.parametrize("step", [0, 3])
def test_stopped_and_resumed_equals_uninterrupted_bitwise(cached, monkeypatch, caplog, step):
    values = {"refine__epochs": 2, "refine__schedule": "cosine", **QUIET}
    reference, rows = refined(cached, **values), history(cached)
    shutil.rmtree(cached / "data/refined")
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(runtime.Stopped):
            run_stage("refine", cached)
        assert not (cached / "data/refined").exists()
    with caplog.at_level("INFO"):
        run_stage("refine", cached)
    assert f"resumed at step {step + 1}" in caplog.text
    assert equal(weights(cached), reference)
    assert history(cached) == rows
    assert not list((cached / ".checkpoints").iterdir())


def test_resumed_equals_uninterrupted_where_layers_are_stochastic(sharded, monkeypatch):
    """The image tower drops half of its patches: which ones depends on the step, not on what was drawn before."""
    path = sharded / "clip/open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.5
    path.write_text(json.dumps(content))
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, sharded)
    plain = refined(sharded, **QUIET)
    reference, rows = refined(sharded, refine__stochastic_layers=True, **QUIET), history(sharded)
    assert not equal(plain, reference)
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            run_stage("refine", sharded)
    run_stage("refine", sharded)
    assert equal(weights(sharded), reference)
    assert history(sharded) == rows


def test_a_pickled_checkpoint_is_not_loaded(cached, monkeypatch):
    """weights_only: a checkpoint that would run code is refused."""
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    [work] = (cached / ".checkpoints").iterdir()
    torch.save({"step": print}, work / CHECKPOINT)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        run_stage("refine", cached)


def newest_checkpoint(project):
    """When it was written, 0 if there is none; the stage may move folders away meanwhile."""
    with suppress(FileNotFoundError):
        return max(map(os.path.getmtime, glob.glob(str(project / ".checkpoints/*" / CHECKPOINT))), default=0)
    return 0


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_with_the_same_weights(cached):
    """SIGKILL at random moments, again and again, a checkpoint at every step: bitwise the uninterrupted weights."""
    values = {"refine__epochs": 8, "runtime__checkpoint_every": 1}
    reference, rows = refined(cached, **values), history(cached)
    shutil.rmtree(cached / "data/refined")
    dice, resumed = random.Random(1), 0
    for _ in range(4):
        process = stage_process(cached, "refine")
        written = time.time()
        while process.poll() is None:
            if newest_checkpoint(cached) > written:
                break
            time.sleep(0.002)
        time.sleep(dice.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        resumed += "resumed at step" in process.communicate()[0]
    process = stage_process(cached, "refine")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert resumed >= 2
    assert equal(weights(cached), reference)
    assert history(cached) == rows
