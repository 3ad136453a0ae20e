"""Raw norms before the first step: measured once, and warned of for the recipes that compare raw dot products."""

import pytest
import safetensors.torch
import torch

from pipeline_lib import tracking
from pipeline_lib.core import runtime
from pipeline_lib.model.features import raw_norms_problem
from pipeline_lib.refine import run as refine
from tests.cached_project import open_cached
from tests.conftest import run_stage
from tests.refine.runs import FROZEN, QUIET, equal, first_batch, history, interrupt_at, refined
from tests.tiny_project import write_params


def test_what_far_from_the_logit_scale_means():
    assert raw_norms_problem(10.0, 10.0, 100.0) is None
    assert raw_norms_problem(10.0, 29.0, 100.0) is None
    assert "(310.0) is far from the model's logit scale (100.0)" in raw_norms_problem(10.0, 31.0, 100.0)
    assert "too sharp; consider a recipe with `logits: scaled_cosine`" in raw_norms_problem(10.0, 31.0, 100.0)
    assert "too flat" in raw_norms_problem(10.0, 3.0, 100.0)


def enlarge_features(project):
    """Image features a hundred times as long, and the stages up to the cache."""
    path = project / "clip/open_clip_model.safetensors"
    tensors = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    tensors["visual.proj"] *= 100
    safetensors.torch.save_file(tensors, path)
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, project)


@pytest.fixture
def logged(monkeypatch):
    """What the tracker is told, in order."""
    told = []
    monkeypatch.setattr(tracking.Run, "log_metrics", lambda _, metrics, step=None: told.append((step, metrics)))
    return told


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_raw_norms_are_logged_once_and_are_those_of_the_first_batch(sharded, logged, mode):
    """By hand, wherever the teacher runs; the history has the same columns in every row, none of them a norm."""
    write_params(sharded, cache_teacher__mode=mode)
    run_stage("cache_teacher", sharded)
    logged.clear()
    refined(sharded, cache_teacher__mode=mode)
    [(step, norms)] = [(step, metrics) for step, metrics in logged if any(name.endswith("_norm") for name in metrics)]
    part, clip, _ = open_cached(sharded)
    data = first_batch(sharded, part)
    with torch.no_grad():
        features = {"image": clip.encode_image(data.inputs.images), "text": clip.encode_text(data.inputs.texts)}
    expected = {f"raw_{key}_norm": float(rows.norm(dim=1).mean()) for key, rows in features.items()}
    expected |= {f"teacher_{key}": value for key, value in expected.items()}  # the same weights
    assert norms == pytest.approx({f"refine_run/{key}": value for key, value in expected.items()}, rel=1e-4)
    assert step is None
    [columns] = {tuple(row) for row in history(sharded)}
    assert columns == ("step", "epoch", "loss", "rafa_loss", "hycd_loss", "learning_rate")
    csv = (sharded / "data/refined/history.csv").read_text().splitlines()
    assert csv[0] == ",".join(columns)
    assert not any(",," in row or row.endswith(",") for row in csv)


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_norms_far_from_the_logit_scale_are_warned_of_where_raw_logits_are_compared(sharded, caplog, mode):
    write_params(sharded, cache_teacher__mode=mode)
    enlarge_features(sharded)
    cases = (
        ("contrastive", {}, 0),
        ("contrastive_raw", {}, 1),
        ("logit_kd", {}, 1),
        ("hycd", {}, 1),
        ("hycd", {"recipes__hycd__logits": "scaled_cosine"}, 0),
    )
    for recipe, values, warned in cases:
        caplog.clear()
        refined(sharded, refine__recipe=recipe, refine__max_steps=1, cache_teacher__mode=mode, **values, **FROZEN)
        assert caplog.text.count("far from the model's logit scale") == warned
        assert caplog.text.count(f"recipes.{recipe}: the product") == warned


def test_a_resumed_run_measures_and_warns_no_more(sharded, logged, caplog, monkeypatch):
    enlarge_features(sharded)
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        with pytest.raises(runtime.Stopped):
            refined(sharded, refine__recipe="hycd", **QUIET)
    assert caplog.text.count("recipes.hycd: the product") == 1
    assert any("refine_run/raw_image_norm" in metrics for _, metrics in logged)
    caplog.clear()
    logged.clear()
    run_stage("refine", sharded)
    assert logged
    assert "recipes.hycd: the product" not in caplog.text
    assert not any("refine_run/raw_image_norm" in metrics for _, metrics in logged)


@pytest.mark.parametrize(
    "values",
    [{}, {"refine__stochastic_layers": True}, {"refine__micro_batch": 3, "refine__text_cut": "batch"}],
)
def test_measuring_the_norms_leaves_the_run_as_it_is(cached, monkeypatch, values):
    """With and without it: weights and history are bitwise the same, and so is the random state behind it."""
    reference, rows = refined(cached, **values), history(cached)
    original, states = refine.measure_raw_norms, []

    def measure(student, setup):
        modes = [layer.training for layer in student.module.modules()]
        states.append(torch.get_rng_state())
        original(student, setup)
        states.append(torch.get_rng_state())
        assert [layer.training for layer in student.module.modules()] == modes
        return {}

    monkeypatch.setattr(refine, "measure_raw_norms", measure)
    refined(cached, **values)
    assert torch.equal(*states)
    monkeypatch.setattr(refine, "measure_raw_norms", lambda *_: {})
    assert equal(refined(cached, **values), reference)
    assert history(cached) == rows


def test_norms_of_the_teacher_far_from_its_logit_scale_are_warned_of(sharded, caplog):
    enlarge_features(sharded)
    assert "far from the model's logit scale" in caplog.text
