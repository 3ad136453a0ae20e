"""One step through the whole stage: the loss of the first one by hand, options, clipping, a loss that is not finite."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline_lib import losses, model
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.features import l2_normalize
from pipeline_lib.refine.sampling import Draws
from tests.cached_project import open_cached, stage_process
from tests.conftest import run_stage
from tests.refine.runs import FROZEN, first_batch, history, refined
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import write_params


def test_first_step_of_self_kd_is_zero_because_the_student_is_the_teacher(cached):
    """Through the whole machinery: cache, caption draw, text cut, loop. Any misjoin would give a positive loss."""
    refined(cached, refine__recipe="self_kd", refine__learning_rate=0.0, refine__weight_decay=0.0)
    for row in history(cached):
        assert abs(row["loss"]) < 1e-6


def test_the_prior_of_rafa_decays_over_the_run(cached):
    refined(cached, refine__recipe="rafa", **FROZEN)
    constant = history(cached)
    refined(cached, refine__recipe="rafa", recipes__rafa__prior__decay="linear", **FROZEN)
    for step, (row, plain) in enumerate(zip(history(cached), constant, strict=True)):
        assert row["rafa_loss"] == pytest.approx(plain["rafa_loss"] * (1 - step / len(constant)), rel=1e-6)


def test_the_teachers_statistics_are_rafas_prior_if_asked_for(cached):
    """The loss of the first step, from the features of the cache; mean and deviation over both modalities."""
    prior = {"kind": "teacher", "mean": 0.0, "std": 0.5, "shared": True, "decay": "none"}
    refined(cached, refine__recipe="rafa", recipes__rafa__prior=prior, **FROZEN)
    part, _, _ = open_cached(cached)
    everything = torch.cat([unit[f"{side}_features"] for unit in part.units for side in ("image", "text")])
    data = first_batch(cached, part)
    keys = [part.key_digests[row].tobytes() for row in data.rows]
    noise = Draws(seed=0, epoch=0, step=0, progress=0.0, key_digests=keys).normal(everything.shape[1])[0]
    reference = everything.mean(0) + 0.5 * everything.std(0, correction=0) * noise
    expected = losses.rafa_loss(*data.teacher_features, reference)
    assert history(cached)[0]["rafa_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_another_teacher_brings_its_own_logit_scale(sharded):
    """The loss of the first step of self-distillation from a wider teacher, on cosines times each one's own scale."""
    path = write_tiny_clip(sharded / "other", seed=7, embed_dim=24) / "open_clip_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"logit_scale": torch.tensor(3.0)}, path)
    values = {"cache_teacher__teacher": "other", "recipes__self_kd__logits": "scaled_cosine"}
    write_params(sharded, **values)
    run_stage("cache_teacher", sharded)
    refined(sharded, refine__recipe="self_kd", **values, **FROZEN)
    part, clip, _ = open_cached(sharded)
    data = first_batch(sharded, part)
    with torch.no_grad():
        student = [clip.encode_image(data.inputs.images), clip.encode_text(data.inputs.texts)]
        s, t = ([l2_normalize(rows) for rows in pair] for pair in (student, data.teacher_features))
        logits = clip.logit_scale * s[0] @ s[1].T, math.exp(3.0) * t[0] @ t[1].T
    expected = losses.hycd_loss(*logits, alpha=0.0)
    assert history(sharded)[0]["self_kd_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_trained_logit_scale_is_bounded_after_every_step(cached):
    """Alone it learns, fast, that these pairs do not fit: unbounded it would go to 0, it ends on the bound of 1."""
    alone = {"refine__lock_image": True, "refine__lock_text": True, "refine__train_logit_scale": True}
    refined(cached, refine__recipe="contrastive", refine__learning_rate=1.0, **alone)
    assert model.load(cached / "data/refined").logit_scale.item() == pytest.approx(1.0)


def test_micro_batches_change_the_weights_by_rounding_only(cached):
    """A large `eps` keeps Adam from blowing up the rounding of gradients that are 0 (the key biases')."""
    whole = refined(cached, refine__eps=1e-3)
    chunked = refined(cached, refine__eps=1e-3, refine__micro_batch=3)
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-5, atol=1e-6)


def test_text_cut_at_each_batch_changes_the_weights_by_rounding_only(cached, monkeypatch):
    """The same run with shorter token ids: what the tower sees is the batch's longest caption, rounded up to 16."""
    whole = refined(cached, refine__eps=1e-3)
    shapes = []
    original = model.Clip.encode_text

    def encode_text(self, token_ids):
        shapes.append((token_ids.shape[1], int(self.text_lengths(token_ids).max())))
        return original(self, token_ids)

    write_params(cached, cache_teacher__text_cut="none")  # 77 tokens, so that there is something to cut
    run_stage("cache_teacher", cached)
    monkeypatch.setattr(model.Clip, "encode_text", encode_text)
    cut = refined(cached, cache_teacher__text_cut="none", refine__text_cut="batch", refine__eps=1e-3)
    steps = [shape for shape in shapes if shape[0] < 77]
    assert len(steps) == len(history(cached)) + 2  # the raw norms before, part `val` after; before, the teacher has it
    assert {width for width, _ in steps} == {16}
    assert all(longest <= width for width, longest in steps)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "check"),
    [
        ({"refine__grad_clip": 1e-3}, lambda rows: all(row["gradient_norm"] > 0 for row in rows)),
        ({"refine__schedule": "cosine", "refine__warmup_steps": 2}, lambda rows: rows[0]["learning_rate"] == 5e-4),
        ({"refine__last_batch": "keep"}, lambda rows: len(rows) == 6),
        ({"refine__max_steps": 2}, lambda rows: len(rows) == 2),
        ({"refine__precision": "bf16"}, lambda rows: len(rows) >= 5),
        ({"refine__precision": "tf32"}, lambda rows: len(rows) >= 5),
        ({"refine__stochastic_layers": True}, lambda rows: len(rows) >= 5),
    ],
)
def test_options(cached, values, check):
    refined(cached, **values)
    rows = history(cached)
    assert check(rows)
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_clipping_bounds_the_norm(cached):
    """Plain gradient norms, then clipped at half the smallest: what Adam sees has at most that norm."""
    refined(cached, refine__grad_clip=1e9)
    smallest = min(row["gradient_norm"] for row in history(cached))
    seen = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        norms = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.stack(norms).norm()))
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        refined(cached, refine__grad_clip=smallest / 2)
    assert seen
    assert max(seen) <= smallest / 2 * (1 + 1e-5)


def test_a_loss_that_is_not_finite_names_step_terms_and_keys(cached):
    write_params(cached, refine__learning_rate=1e30)
    with pytest.raises(UserError, match=r"not finite at step [12] \(.*hycd_loss.*batch: 00\d\d, "):
        run_stage("refine", cached)
    assert not (cached / "data/refined").exists()


@pytest.mark.slow
def test_towers_that_cannot_be_compiled_are_one_sentence(cached):
    write_params(cached, refine__compile=True)
    folder = str(cached / "compiled")  # nothing that was compiled before
    process = stage_process(cached, "refine", CXX="/no/compiler", TORCHINDUCTOR_CACHE_DIR=folder)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert "error: refine.compile: the towers cannot be compiled (InvalidCxxCompiler: No working C++ compiler" in output
    assert "Traceback" not in output
