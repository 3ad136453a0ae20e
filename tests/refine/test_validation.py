"""The loss on part `val`: by hand, comparable between moments, and nothing of the run changes for it."""

import numpy as np
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.losses import hycd_loss
from pipeline_lib.refine import validation
from tests.cached_project import open_cached
from tests.conftest import run_stage
from tests.refine.runs import equal, history, measured, weights
from tests.tiny_project import write_params


@pytest.mark.parametrize("values", [{"refine__batch_size": 4}, {"refine__micro_batch": 3}, {"refine__batch_size": 32}])
def test_loss_on_val_is_that_of_the_models_before_and_after(cached, values):
    """By hand: both models, loaded, on the first captions of consecutive batches, against the base's logits."""
    found = measured(cached, refine__recipe="hycd", **values)
    part, base, paths = open_cached(cached, "val")
    size = min(values.get("refine__batch_size", 8), len(part))
    assert 12 <= len(part) < 24
    for moment, clip in (("before", base), ("after", model.load(paths.refined))):
        losses = []
        for start in range(0, len(part) - size + 1, size):
            inputs = part.read_inputs(range(start, start + size), [0] * size)
            with torch.no_grad():
                logits = [c.encode_image(inputs.images) @ c.encode_text(inputs.texts).T for c in (clip, base)]
            losses.append(float(hycd_loss(*logits)))
        assert found[f"val_loss_{moment}"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["val_loss_after"] != found["val_loss_before"]


def test_loss_on_val_before_the_first_step_is_zero_where_the_student_equals_its_teacher(cached):
    found = measured(cached, refine__recipe="self_kd")
    assert abs(found["val_loss_before"]) < 1e-6 < found["val_loss_after"]


@pytest.mark.parametrize(
    ("values", "passes"),
    [({}, 1), ({"cache_teacher__dtype": "float16"}, 2), ({"refine__precision": "bf16"}, 2)],
)
def test_before_the_first_step_the_features_of_part_val_are_those_of_the_cache(cached, monkeypatch, values, passes):
    """It passes the student once, after the last step; twice where the cache holds other numbers than that gives."""
    write_params(cached, **values)
    run_stage("cache_teacher", cached)
    embedded, original = [], validation.embed_batch

    def embed_batch(student, inputs, setup):
        embedded.append(len(inputs.images))
        return original(student, inputs, setup)

    monkeypatch.setattr(validation, "embed_batch", embed_batch)
    measured(cached, **values)
    assert len(embedded) == passes * (len(open_cached(cached, "val")[0]) // 8)


@pytest.mark.parametrize(
    "values", [{}, {"refine__stochastic_layers": True}, {"refine__recipe": "m2_mix", "refine__text_cut": "batch"}]
)
def test_measuring_the_loss_on_val_leaves_the_run_as_it_is(sharded, values):
    """The same training set with and without a part `val`: weights and history are bitwise the same."""
    found = []
    for held_out in ("val", "other"):
        parts = {"refine": 0.5, held_out: 0.2, "eval": 0.3}
        changed = {"data__parts": parts, "evaluate__selection": held_out, **values}
        write_params(sharded, **changed)
        for name in ("shard", "cache_teacher"):
            run_stage(name, sharded)
        metrics = measured(sharded, **changed)
        assert ({"val_loss_before", "val_loss_after"} <= metrics.keys()) == (held_out == "val")
        found.append((weights(sharded), history(sharded)))
    assert equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_loss_on_val_is_the_same_with_an_online_teacher(sharded):
    found = []
    for mode in ("cached", "online"):
        write_params(sharded, cache_teacher__mode=mode)
        run_stage("cache_teacher", sharded)
        metrics = measured(sharded, cache_teacher__mode=mode)
        found.append([metrics["val_loss_before"], metrics["val_loss_after"]])
    assert found[0] == found[1]
