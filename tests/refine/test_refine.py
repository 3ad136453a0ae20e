"""The loop: exactly-once seeded epochs, bitwise resumption, one process = two, loud stops, a result that loads back."""

import collections
import glob
import json
import math
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from pipeline_lib import losses, model, tracking
from pipeline_lib.core import artifacts, config, distributed, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.losses import hycd_loss
from pipeline_lib.model.features import l2_normalize, raw_norms_problem
from pipeline_lib.refine import loop as training
from pipeline_lib.refine import run as refinement
from pipeline_lib.refine.epochs import Plan, read_steps
from pipeline_lib.refine.sampling import Draws
from pipeline_lib.refine.settings import RefineSettings
from tests.cache_teacher.test_cache_teacher import count_decoded, open_cached, stage_process
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, write_params

QUIET = {"runtime__checkpoint_every": 1000}


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


# --- what a step sees -------------------------------------------------------------------------------------------


def plan(**changes):
    return Plan(
        **{"rows": np.arange(0, 110, 2), "batch_size": 8, "epochs": 3, "keep_last": False, "seed": 0, **changes}
    )


@pytest.mark.parametrize("keep_last", [True, False])
def test_an_epoch_visits_every_row_once_the_dropped_tail_aside(keep_last):
    found = plan(keep_last=keep_last)
    tails = []
    for epoch in range(3):
        seen = np.concatenate(found.batches(epoch))
        assert len(set(seen)) == len(seen) == (55 if keep_last else 48)
        assert set(seen) <= set(found.rows)
        tails.append(frozenset(set(found.rows) - set(seen)))
    assert found.num_dropped == (0 if keep_last else 7)
    assert found.num_steps == 3 * (7 if keep_last else 6)
    assert len(set(tails)) == (1 if keep_last else 3)  # other ones are dropped each epoch
    assert replace(found, max_steps=4).num_steps == 4
    assert min(map(len, found.batches(0))) == found.smallest_batch == (7 if keep_last else 8)
    assert replace(found, max_steps=6).smallest_batch == 8  # ends before the last batch


def plan_of(part):
    """The plan of a run of one epoch with the defaults of these tests."""
    return plan(rows=part.valid_rows, epochs=1)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_sequence_of_batches_does_not_depend_on_the_workers(cached, workers):
    part, _, _ = open_cached(cached)
    found = Plan(rows=part.valid_rows, batch_size=8, epochs=1, keep_last=True, seed=3)
    options = {"world": World(), "pin_memory": False}
    reference = list(read_steps(part, found, step=0, num_workers=0, **options))
    steps = list(read_steps(part, found, step=0, num_workers=workers, **options))
    assert len(steps) == found.num_steps
    for a, b in zip(steps, reference, strict=True):
        assert np.array_equal(a.rows, b.rows)
        assert all(torch.equal(x, y) for x, y in zip((*a.inputs, *a.teacher_features), (*b.inputs, *b.teacher_features), strict=True))  # fmt: skip  # noqa: E501
    resumed = list(read_steps(part, found, step=2, num_workers=workers, **options))
    assert [list(s.rows) for s in resumed] == [list(s.rows) for s in reference[2:]]


def test_two_processes_see_the_halves_of_one_process_batch(cached):
    part, _, _ = open_cached(cached)
    found = Plan(rows=part.valid_rows, batch_size=7, epochs=1, keep_last=True, seed=3)
    options = {"step": 0, "num_workers": 0, "pin_memory": False}
    whole = list(read_steps(part, found, world=World(), **options))
    halves = [list(read_steps(part, found, world=World(rank, 2), **options)) for rank in range(2)]
    for all_rows, first, second in zip(whole, *halves, strict=True):
        for name in ("images", "token_ids"):
            joined = torch.cat([getattr(first.inputs, name), getattr(second.inputs, name)])
            assert torch.equal(joined, getattr(all_rows.inputs, name))
        assert torch.equal(first.teacher_features[0], all_rows.teacher_features[0])


def test_captions_change_between_epochs_and_all_are_used(cached):
    part, _, _ = open_cached(cached)
    seen = collections.defaultdict(set)
    found = Plan(rows=part.valid_rows, batch_size=8, epochs=12, keep_last=True, seed=0)
    for step in range(0, found.num_steps, found.steps_per_epoch):
        for data in read_steps(part, found, step=step, world=World(), num_workers=0, pin_memory=False):
            for row, ids in zip(data.rows, data.inputs.token_ids, strict=True):
                seen[int(row)].add(tuple(ids.tolist()))
    counts = [len(seen[row]) for row in seen]
    assert len(seen) == len(part)
    assert np.mean(counts) > 0.9 * part.num_captions.mean()


# --- a run ------------------------------------------------------------------------------------------------------


def test_history_and_result(cached):
    """The loss of the first step is that of the untouched model; the result loads with plain open_clip."""
    refined(cached, refine__epochs=2)
    part, clip, _ = open_cached(cached)
    rows = history(cached)
    assert [row["step"] for row in rows] == list(range(len(part) // 8 * 2))
    assert all(row["loss"] == pytest.approx(row["rafa_loss"] + row["hycd_loss"]) for row in rows)
    assert rows[-1]["epoch"] == 1
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{cached / 'data/refined'}")
    plain.eval()
    mine = model.load(cached / "data/refined")
    inputs = part.read_inputs([0, 1], [0, 0])
    with torch.inference_mode():
        expected = plain.encode_image(mine.normalize(inputs.images))
        assert torch.equal(mine.encode_image(inputs.images), expected)
        assert not torch.equal(clip.encode_image(inputs.images), expected)
    manifest = artifacts.read_manifest(cached / "data/refined", stage="refine")
    assert manifest["model"]["refined_from"] == clip.facts["weights_digest"]
    assert manifest["model"]["weights_digest"] == mine.facts["weights_digest"] != clip.facts["weights_digest"]
    assert mine.facts["logit_scale"] == clip.facts["logit_scale"]  # frozen by default
    params = config.read_params(cached / "params.yaml")
    made_with = {key: value for key, value in params["refine"].items() if key != "step0_tolerance"}
    assert manifest["parameters"]["refine"] == made_with
    assert manifest["parameters"]["recipes"] == {"clip_refine": params["recipes"]["clip_refine"]}
    teacher = {key: params["cache_teacher"][key] for key in refinement.DECIDE_TEACHER}
    assert manifest["parameters"]["cache_teacher"] == teacher
    trained_on = [
        json.loads(line)["key"] for line in (cached / "data/refined/trained_on.jsonl").read_text().splitlines()
    ]
    assert trained_on == [part.entry(row)[1].key for row in range(len(part))]
    assert artifacts.verify(cached / "data/refined") == []


def test_first_step_of_self_kd_is_zero_because_the_student_is_the_teacher(cached):
    """Through the whole machinery: cache, caption draw, text cut, loop. Any misjoin would give a positive loss."""
    refined(cached, refine__recipe="self_kd", refine__learning_rate=0.0, refine__weight_decay=0.0)
    for row in history(cached):
        assert abs(row["loss"]) < 1e-6


FROZEN = {"refine__learning_rate": 0.0, "refine__weight_decay": 0.0}


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
    [data, *_] = read_steps(part, plan_of(part), step=0, world=World(), num_workers=0, pin_memory=False)
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
    [data, *_] = read_steps(part, plan_of(part), step=0, world=World(), num_workers=0, pin_memory=False)
    with torch.no_grad():
        student = [clip.encode_image(data.inputs.images), clip.encode_text(data.inputs.token_ids)]
        s, t = ([l2_normalize(rows) for rows in pair] for pair in (student, data.teacher_features))
        logits = clip.logit_scale * s[0] @ s[1].T, math.exp(3.0) * t[0] @ t[1].T
    expected = losses.hycd_loss(*logits, alpha=0.0)
    assert history(sharded)[0]["self_kd_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("side", ["image_features", "text_features"])
def test_two_rows_that_changed_places_in_the_cache_are_noticed_before_the_first_step(cached, side):
    part, clip, _ = open_cached(cached)
    assert refinement.check_step_zero(clip, part, 64, 1e-4) <= 1e-4
    unit = part.units[0]
    rows = torch.tensor([0, 1]) if side == "image_features" else unit["caption_offsets"][1:3] - 1  # their last captions
    unit[side][rows] = unit[side][rows.flip(0)]
    with pytest.raises(UserError, match=r"before the first step .* more than refine.step0_tolerance 1e-04"):
        refinement.check_step_zero(clip, part, 64, 1e-4)


def test_the_seed_decides_and_nothing_else_does(cached):
    first = refined(cached)
    assert equal(refined(cached, runtime__num_workers=2, runtime__checkpoint_every=1), first)
    assert not equal(refined(cached, refine__seed=1), first)


def test_a_trained_logit_scale_is_bounded_after_every_step(cached):
    """Alone it learns, fast, that these pairs do not fit: unbounded it would go to 0, it ends on the bound of 1."""
    alone = {"refine__lock_image": True, "refine__lock_text": True, "refine__train_logit_scale": True}
    refined(cached, refine__recipe="contrastive", refine__learning_rate=1.0, **alone)
    assert model.load(cached / "data/refined").logit_scale.item() == pytest.approx(1.0)


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
    assert len(steps) == len(history(cached)) + 2  # part `val` before and after
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


# --- the loss on part `val` -------------------------------------------------------------------------------------


def measured(project, **values):
    """What the stage gives the tracker."""
    found, original = {}, refinement.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "run", lambda *arguments: found.setdefault("made", original(*arguments)))
        refined(project, **values)
    return found["made"]["metrics"]


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
                logits = [c.encode_image(inputs.images) @ c.encode_text(inputs.token_ids).T for c in (clip, base)]
            losses.append(float(hycd_loss(*logits)))
        assert found[f"val_loss_{moment}"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["val_loss_after"] != found["val_loss_before"]


def test_loss_on_val_before_the_first_step_is_zero_where_the_student_equals_its_teacher(cached):
    found = measured(cached, refine__recipe="self_kd")
    assert abs(found["val_loss_before"]) < 1e-6 < found["val_loss_after"]


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


# --- loud stops -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_terms_and_keys(cached):
    write_params(cached, refine__learning_rate=1e30)
    with pytest.raises(UserError, match=r"not finite at step [12] \(.*hycd_loss.*batch: 00\d\d, "):
        run_stage("refine", cached)
    assert not (cached / "data/refined").exists()


def test_a_set_smaller_than_the_batch_is_an_error(cached):
    write_params(cached, refine__batch_size=512)
    with pytest.raises(UserError, match=r"refine.batch_size: 512 is more than the \d+ training samples"):
        run_stage("refine", cached)


def test_a_last_batch_with_fewer_rows_than_processes_is_refused_before_the_first_step(cached, monkeypatch):
    rest = len(open_cached(cached)[0].valid_rows) % 8
    assert rest > 1
    monkeypatch.setattr(distributed, "join", lambda *_: World(0, rest + 1))
    write_params(cached, refine__last_batch="keep")
    with pytest.raises(UserError, match=rf"a batch of {rest} pairs, too few for {rest + 1} processes; .*to drop"):
        run_stage("refine", cached)


def test_weights_that_did_not_move_are_warned_of(cached, caplog):
    refined(cached, refine__learning_rate=1e-9)
    assert "learning rate x steps is too small" in caplog.text
    caplog.clear()
    refined(cached)
    assert "too small" not in caplog.text


@pytest.mark.parametrize(
    ("rate", "broken"),
    [
        (1e30, "the refined model's features are not finite"),
        (1e300, r"the weights are not finite after the last step \(.*\)"),
    ],
)
def test_weights_that_explode_on_the_last_step_are_said_to(cached, rate, broken):
    """No loss is computed from them, so no step can notice."""
    write_params(cached, refine__learning_rate=rate, refine__max_steps=1)
    with pytest.raises(UserError, match=rf"^refine: {broken}; lower refine\.learning_rate$"):
        run_stage("refine", cached)
    assert not (cached / "data/refined").exists()


def test_what_far_from_the_logit_scale_means():
    assert raw_norms_problem(10.0, 10.0, 100.0) is None
    assert raw_norms_problem(10.0, 29.0, 100.0) is None
    assert "(310.0) is far from the model's logit scale (100.0)" in raw_norms_problem(10.0, 31.0, 100.0)
    assert "too sharp; consider `logits: scaled_cosine`" in raw_norms_problem(10.0, 31.0, 100.0)
    assert "too flat" in raw_norms_problem(10.0, 3.0, 100.0)


def enlarge_features(project):
    """Image features a hundred times as long, and the stages up to the cache."""
    path = project / "clip/open_clip_model.safetensors"
    tensors = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    tensors["visual.proj"] *= 100
    safetensors.torch.save_file(tensors, path)
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, project)


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_raw_norms_are_logged_and_those_far_from_the_logit_scale_warned_of(sharded, caplog, monkeypatch, mode):
    """At the first step of every run, wherever the teacher runs; the warning is for recipes that use raw logits."""
    logged = []
    monkeypatch.setattr(tracking.Run, "log_metrics", lambda _, metrics, step=None: logged.append(metrics))
    write_params(sharded, cache_teacher__mode=mode)
    enlarge_features(sharded)
    for recipe, warned in (("contrastive", 0), ("hycd", 1)):
        caplog.clear()
        logged.clear()
        refined(sharded, refine__recipe=recipe, cache_teacher__mode=mode)
        assert caplog.text.count("far from the model's logit scale") == warned
        assert caplog.text.count("recipes.hycd: the product") == warned
        first, *others = history(sharded)
        norms = {key: value for key, value in first.items() if key.endswith("_norm")}
        part, clip, _ = open_cached(sharded)
        [data, *_] = read_steps(part, plan_of(part), step=0, world=World(), num_workers=0, pin_memory=False)
        with torch.no_grad():
            features = {"image": clip.encode_image(data.inputs.images), "text": clip.encode_text(data.inputs.token_ids)}
        expected = {f"raw_{key}_norm": float(rows.norm(dim=1).mean()) for key, rows in features.items()}
        expected |= {f"teacher_{key}": value for key, value in expected.items()}  # the same weights
        assert norms == pytest.approx(expected, rel=1e-4)
        assert not any(key.endswith("_norm") for row in others for key in row)
        assert any(metrics.get("refine/raw_image_norm") == first["raw_image_norm"] for metrics in logged)


def test_norms_of_the_teacher_far_from_its_logit_scale_are_warned_of(sharded, caplog):
    enlarge_features(sharded)
    assert "far from the model's logit scale" in caplog.text


def test_everything_locked_is_refused(cached):
    write_params(cached, refine__lock_image=True, refine__lock_text=True)
    with pytest.raises(UserError, match="every weight is locked"):
        run_stage("refine", cached)


# --- kill and resume --------------------------------------------------------------------------------------------


def interrupt_at(step, monkeypatch):
    """As SIGTERM does: `stop_requested` turns true while step number `step` is computed."""
    original = training.Refiner._one_step

    def one_step(self, data):
        if self.step == step:
            monkeypatch.setattr(runtime, "_stop_signal", signal.SIGTERM)
        return original(self, data)

    monkeypatch.setattr(training.Refiner, "_one_step", one_step)


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


@pytest.mark.parametrize(
    "change",
    [
        {"refine__learning_rate": 2e-3},
        {"refine__recipe": "hycd"},
        {"refine__seed": 1},
        {"recipes__clip_refine__alpha": 0.4},
    ],
)
def test_another_configuration_never_resumes_an_old_checkpoint(cached, monkeypatch, caplog, change):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    with caplog.at_level("INFO"):
        refined(cached, **QUIET, **change)
    assert "resumed" not in caplog.text
    assert len(history(cached)) >= 5


def test_another_input_or_code_version_never_resumes_an_old_checkpoint(cached, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr("pipeline_lib.core.provenance.code_digest", lambda *_: "other")
        run_stage("refine", cached)
    assert "resumed" not in caplog.text
    shutil.rmtree(cached / "clip")
    write_tiny_clip(cached / "clip", seed=5)
    for name in ("base", "shard", "cache_teacher", "refine"):
        run_stage(name, cached)
    assert "resumed" not in caplog.text


def test_a_pickled_checkpoint_is_not_loaded(cached, monkeypatch):
    """weights_only: a checkpoint that would run code is refused."""
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    [work] = (cached / ".checkpoints").iterdir()
    torch.save({"step": print}, work / training.CHECKPOINT)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        run_stage("refine", cached)


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


def newest_checkpoint(project):
    """When it was written, 0 if there is none; the stage may move folders away meanwhile."""
    with suppress(FileNotFoundError):
        return max(map(os.path.getmtime, glob.glob(str(project / ".checkpoints/*" / training.CHECKPOINT))), default=0)
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
    assert list((cached / ".checkpoints").rglob(training.CHECKPOINT))


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


def test_config_mentions_every_field_of_refine():
    """A field that nothing reads would be a switch without a wire."""
    library = [path for path in (ROOT / "pipeline_lib").glob("*.py") if path.stem != "config"]
    source = "".join(path.read_text() for path in library)
    for name in RefineSettings.__dataclass_fields__:
        assert f"settings.{name}" in source, name
