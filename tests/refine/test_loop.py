"""What decides the weights and what does not: seed, teacher, pixels, signals, a lost store, two processes."""

import re
import shutil
import signal
import time

import pytest
import torch

from pipeline_lib import tracking
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.refine.checkpoint import CHECKPOINT
from tests.cached_project import count_decoded, stage_process
from tests.conftest import run_stage
from tests.refine.runs import QUIET, equal, history, refined, weights
from tests.tiny_project import write_params


def test_the_seed_decides_and_nothing_else_does(cached):
    first = refined(cached)
    assert equal(refined(cached, runtime__num_workers=2, runtime__checkpoint_every=1), first)
    assert not equal(refined(cached, refine__seed=1), first)


def test_online_teacher_gives_bitwise_the_cached_run(sharded):
    found = []
    for mode in ("cached", "online"):
        write_params(sharded, cache_teacher__mode=mode)
        run_stage("cache_teacher", sharded)
        run_stage("refine", sharded)
        found.append((weights(sharded), history(sharded)))
    assert equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_without_stored_pixels_the_run_is_the_same(cached, monkeypatch, caplog):
    """From the pixels no image is decoded; without them, or told not to use them, the weights are bitwise the same."""
    decoded = count_decoded(monkeypatch)
    reference, rows = refined(cached), history(cached)
    assert len(decoded) == len(list((cached / "data/pixels").glob("*.npy")))  # one of each file, to compare
    remedy = "data/pixels has no pixels of these shards: each image is decoded again"
    for stored, values in ((True, {"cache_teacher__pixels": "never"}), (False, {})):
        if not stored:
            shutil.rmtree(cached / "data/pixels")
        decoded.clear()
        caplog.clear()
        with caplog.at_level("INFO"):
            assert equal(refined(cached, **values), reference)
        assert history(cached) == rows
        assert len(decoded) > 40
        assert caplog.text.count(remedy) == (0 if stored else 1)
    assert equal(refined(cached, runtime__num_workers=2), reference)


@pytest.mark.parametrize("asked", ["check", "settle"])  # behind a checkpoint, and before the result is published
def test_where_a_required_store_is_lost_no_step_is(cached, monkeypatch, caplog, asked):
    values = {"runtime__checkpoint_every": 2}
    reference, rows = refined(cached, **values), history(cached)
    shutil.rmtree(cached / "data/refined")

    def lost(_run):
        raise UserError("tracking.mode: `required`, but MLflow failed")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, asked, lost)
        with pytest.raises(UserError, match="required"):
            run_stage("refine", cached)
        assert not (cached / "data/refined").exists()
    with caplog.at_level("INFO"):
        run_stage("refine", cached)
    assert f"resumed at step {2 if asked == 'check' else len(rows)}" in caplog.text
    assert equal(weights(cached), reference)
    assert history(cached) == rows


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_ends_the_stage(cached, number):
    write_params(cached, refine__epochs=400, **QUIET)
    process = stage_process(cached, "refine")
    while not list((cached / ".checkpoints").rglob(artifacts.HISTORY)):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "checkpoint written at step" in output
    assert list((cached / ".checkpoints").rglob(CHECKPOINT))


@pytest.mark.slow
def test_two_processes_refine_as_one(cached, caplog):
    """torchrun through `runtime.processes: 2`: the weights of one process, to fp32 rounding (fp64: test_gradients)."""
    values = {"refine__eps": 1e-3, "refine__batch_size": 6}
    with caplog.at_level("INFO"):
        one = refined(cached, **values)
    rows = history(cached)
    write_params(cached, **values, runtime__processes=2)
    process = stage_process(cached, "refine")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    for name, value in weights(cached).items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(history(cached), rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    for moment in ("before", "after"):
        found = [re.findall(rf"{moment}: .* on 2 batches of part val: (.*)", text) for text in (caplog.text, output)]
        assert [len(lines) for lines in found] == [1, 1]
        assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
