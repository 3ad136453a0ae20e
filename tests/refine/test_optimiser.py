"""Locks, modes, the optimiser and its schedule do what they say."""

import collections
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.features import Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.optimiser import clamp_logit_scale, learning_rate, make_optimizer, select_trainable
from pipeline_lib.refine.settings import RefineSettings
from tests.conftest import run_stage
from tests.step_case import blocks, case, gradients, largest_difference
from tests.tiny_model import COCA, custom_clip, write_tiny_clip, write_tiny_hf_clip, write_tiny_timm_clip
from tests.tiny_project import write_params

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({"lock_image": True}, lambda name: not name.startswith("visual.") and name != "logit_scale"),
        ({"lock_text": True}, lambda name: name.startswith("visual.")),
        ({"trainable": "projections"}, lambda name: name in ("visual.proj", "text_projection")),
        ({"train_logit_scale": True}, lambda name: True),
        ({}, lambda name: name != "logit_scale"),
    ],
)
def test_locked_weights_stay_bitwise_and_the_others_move(tiny_clip, refine_settings, change, moves):
    clip, inputs, teacher, draws = case(tiny_clip, torch.float32)
    chosen = replace(refine_settings, learning_rate=1e-2, **change)
    select_trainable(clip, chosen)
    before = {name: p.detach().clone() for name, p in clip.module.named_parameters()}
    optimizer = make_optimizer(clip, chosen)
    backward(Encoders(student=clip), recipes.make_recipe("contrastive", blocks()), inputs, teacher, draws)
    optimizer.step()
    for name, parameter in clip.module.named_parameters():
        assert torch.equal(parameter, before[name]) != moves(name), name


def trained(clip, refine_settings, **change):
    """Names of the weights that are trained under `change`."""
    select_trainable(clip, replace(refine_settings, **change))
    return {name for name, p in clip.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("write", "change", "tower", "open_parts"),
    [
        (
            write_tiny_clip,
            {"lock_image": True, "lock_image_unlocked_groups": 2},
            "visual.",
            ("visual.proj", "visual.ln_post.", "visual.transformer.resblocks.1."),
        ),
        (
            write_tiny_timm_clip,
            {"lock_image": True, "lock_image_unlocked_groups": 1},
            "visual.",
            ("visual.head.", "visual.trunk.layer4."),
        ),
        (write_tiny_hf_clip, {"lock_text": True}, "text.", ()),
        (
            write_tiny_hf_clip,
            {"lock_text": True, "lock_text_unlocked_layers": 1},
            "text.",
            ("text.proj.", "text.transformer.encoder.layer.1."),
        ),
    ],
)
def test_the_first_blocks_of_a_tower_can_be_locked(write, change, tower, open_parts, refine_settings, tmp_path):
    """The named last parts of the tower are trained and no other of it; the other tower is trained whole."""
    clip = model.load(write(tmp_path / "clip"))
    everything = trained(clip, refine_settings)
    found = trained(clip, refine_settings, **change)
    expected = {name for name in everything if not name.startswith(tower) or name.startswith(open_parts)}
    assert found == expected
    assert all(any(name.startswith(part) for name in found) for part in open_parts)


@pytest.mark.parametrize(
    ("side", "layers", "tower", "open_parts"),
    [
        ("image", "groups", "visual.", ("visual.proj", "visual.ln_post.", "visual.transformer.resblocks.1.")),
        ("text", "layers", "text.", ("text.text_projection", "text.ln_final.", "text.transformer.resblocks.1.")),
    ],
)
def test_towers_of_coca_can_be_locked(side, layers, tower, open_parts, refine_settings, tmp_path):
    """Whole, or but for the last two parts; its captioner, which features do not pass, is never trained."""
    clip = custom_clip(tmp_path / "clip", **COCA)
    everything = trained(clip, refine_settings)
    assert not any(name.startswith("text_decoder.") for name in everything)
    locked = trained(clip, refine_settings, **{f"lock_{side}": True})
    assert locked == {name for name in everything if not name.startswith(tower)}
    found = trained(clip, refine_settings, **{f"lock_{side}": True, f"lock_{side}_unlocked_{layers}": 2})
    assert found == locked | {name for name in everything if name.startswith(open_parts)} > locked
    with pytest.raises(UserError, match="every weight is locked"):
        trained(clip, refine_settings, lock_image=True, lock_text=True)


@pytest.mark.parametrize(
    ("write", "side", "parts", "there"),
    [
        (write_tiny_clip, "image", "groups", 4),  # two layers, what comes before them, the projection
        (write_tiny_clip, "text", "layers", 4),
        (write_tiny_timm_clip, "image", "groups", 5),
        (write_tiny_hf_clip, "text", "layers", 2),
    ],
)
def test_more_parts_than_a_tower_has_are_refused(write, side, parts, there, refine_settings, tmp_path):
    """open_clip would train the whole tower."""
    clip = model.load(write(tmp_path / "clip"))
    everything = trained(clip, refine_settings)
    key = f"lock_{side}_unlocked_{parts}"
    with pytest.raises(
        UserError,
        match=rf"^refine\.{key}: {there + 1}, but the tower has {there}; lower it, or set refine.lock_{side} to",
    ):
        trained(clip, refine_settings, **{f"lock_{side}": True, key: there + 1})
    found = trained(clip, refine_settings, **{f"lock_{side}": True, key: there})
    assert trained(clip, refine_settings, **{f"lock_{side}": True, key: there - 1}) < found
    assert found == everything or write is write_tiny_hf_clip  # whose embeddings stay locked


def test_a_resnet_of_open_clip_is_locked_whole_or_not_at_all(refine_settings, tmp_path):
    clip = custom_clip(tmp_path / "clip", vision={"layers": [1, 1, 1, 1], "width": 8})
    assert not any(name.startswith("visual.") for name in trained(clip, refine_settings, lock_image=True))
    with pytest.raises(UserError, match=r"refine\.lock_image_unlocked_groups: 1, but .*set 0"):
        trained(clip, refine_settings, lock_image=True, lock_image_unlocked_groups=1)
    with pytest.raises(UserError, match=r"refine\.grad_checkpointing: true, but the image tower .*refine\.micro_batch"):
        trained(clip, refine_settings, grad_checkpointing=True)


def test_fused_adamw_is_adamw(tiny_clip, refine_settings):
    """On the same gradients the fused kernel and the plain one agree to rounding after three steps."""
    results = []
    for fused in (True, False):
        clip = model.load(tiny_clip)
        select_trainable(clip, refine_settings)
        optimizer = make_optimizer(clip, refine_settings)
        optimizer.param_groups[0]["fused"] = fused
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        results.append({k: v.detach().clone() for k, v in clip.module.named_parameters()})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-7)


def test_the_optimiser_is_adamw_with_the_settings_own_numbers(tiny_clip, refine_settings):
    """Four steps of random gradients in fp64 against the update written out, on every trained weight."""
    chosen = replace(refine_settings, learning_rate=0.05, weight_decay=0.3, betas=(0.6, 0.7), eps=1e-3)
    clip = model.load(tiny_clip, dtype=torch.float64)
    select_trainable(clip, chosen)
    optimizer = make_optimizer(clip, chosen)
    weights = [p for p in clip.module.parameters() if p.requires_grad]
    expected = [p.detach().clone() for p in weights]
    means, squares = [[torch.zeros_like(p) for p in weights] for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 5):
        for row, parameter in enumerate(weights):
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient
            means[row] = 0.6 * means[row] + 0.4 * gradient
            squares[row] = 0.7 * squares[row] + 0.3 * gradient**2
            mean, square = means[row] / (1 - 0.6**step), squares[row] / (1 - 0.7**step)
            expected[row] = expected[row] - 0.05 * (0.3 * expected[row] + mean / (square.sqrt() + 1e-3))
        optimizer.step()
    for found, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-12)


def test_a_trained_logit_scale_does_not_decay_and_stays_within_clips_bounds(tiny_clip, refine_settings):
    """Gradients of 0 leave AdamW's decay alone: the towers shrink, the scale does not. Bounds: open_clip's training."""
    chosen = replace(refine_settings, train_logit_scale=True, learning_rate=0.1, weight_decay=0.5)
    clip = model.load(tiny_clip)
    select_trainable(clip, chosen)
    optimizer = make_optimizer(clip, chosen)
    scale, weight = clip.module.logit_scale, clip.module.visual.proj
    before = scale.item(), weight.norm().item()
    for parameter in clip.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert scale.item() == before[0]
    assert weight.norm().item() == pytest.approx(0.95 * before[1], rel=1e-5)
    for value, bounded in ((9.0, 100.0), (-1.0, 1.0)):
        scale.data.fill_(value)
        clamp_logit_scale(clip, before[0])
        assert clip.logit_scale.item() == pytest.approx(bounded)
    scale.data.fill_(9.0)
    clamp_logit_scale(clip, 5.0)  # a base beyond the bound, as SigLIP's are, keeps its own
    assert scale.item() == 5.0
    select_trainable(clip, refine_settings)
    scale.data.fill_(9.0)
    clamp_logit_scale(clip, 5.0)
    assert scale.item() == 9.0  # frozen: as the base has it


@pytest.mark.parametrize("stochastic_layers", [False, True])
def test_batch_norm_statistics_stay_as_they_are(refine_settings, tmp_path, stochastic_layers):
    """And are the ones used: another row of the batch changes nothing of a row's features."""
    clip, inputs, teacher, draws = case(write_tiny_timm_clip(tmp_path / "clip"))
    before = {name: buffer.clone() for name, buffer in clip.module.named_buffers()}
    assert any("running_mean" in name for name in before)
    select_trainable(clip, replace(refine_settings, stochastic_layers=stochastic_layers))
    encoders = Encoders(student=clip)
    backward(encoders, recipes.make_recipe("hycd", blocks()), inputs, teacher, draws)
    assert all(torch.equal(buffer, before[name]) for name, buffer in clip.module.named_buffers())
    one = encoders(Inputs(inputs.images[:1], inputs.texts[:1]))[0]
    torch.testing.assert_close(encoders(inputs)[0][:1], one, rtol=1e-10, atol=1e-10)


def count_passes(clip):
    """How often data pass the first operation of the first layer of each tower, counted from now on."""
    visual, text = clip.module.visual, getattr(clip.module, "text", clip.module)
    encoder = getattr(text.transformer, "encoder", None)
    layers = {
        "image": visual.trunk.layer1[0] if hasattr(visual, "trunk") else visual.transformer.resblocks[0],
        "text": encoder.layer[0] if encoder else text.transformer.resblocks[0],
    }
    passes = collections.Counter()
    for side, layer in layers.items():
        first = next(part for part in layer.modules() if not list(part.children()))
        first.register_forward_pre_hook(lambda *_, side=side: passes.update([side]))
    return passes


@pytest.mark.parametrize("stochastic_layers", [False, True])
@pytest.mark.parametrize("write", [write_tiny_clip, write_tiny_timm_clip, write_tiny_hf_clip])
def test_gradient_checkpointing_computes_every_layer_twice_and_the_same_gradient(
    write, stochastic_layers, refine_settings, tmp_path
):
    """Two forward passes through each tower's first layer instead of one; dropout repeats in the second."""
    tiny_clip = write(tmp_path / "clip")
    found, counts = [], []
    for on in (False, True):
        clip, inputs, teacher, draws = case(tiny_clip)
        select_trainable(clip, replace(refine_settings, grad_checkpointing=on, stochastic_layers=stochastic_layers))
        counts.append(count_passes(clip))
        torch.manual_seed(0)
        backward(Encoders(student=clip), recipes.make_recipe("hycd", blocks()), inputs, teacher, draws)
        found.append(gradients(clip))
    assert counts == [{"image": 1, "text": 1}, {"image": 2, "text": 2}]
    assert largest_difference(found[1], found[0], floor=1e-9) < 1e-12


def test_gradient_checkpointing_is_refused_where_a_tower_cannot(tiny_clip, refine_settings, monkeypatch, tmp_path):
    clip = model.load(write_tiny_timm_clip(tmp_path / "timm"))
    monkeypatch.setattr(type(clip.module.visual.trunk), "set_grad_checkpointing", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"refine\.grad_checkpointing: true, but the image tower .*refine\.micro_batch"):
        select_trainable(clip, replace(refine_settings, grad_checkpointing=True))


def test_schedule():
    refine_settings = config.load(ROOT / "params.yaml", RefineSettings)
    warm = replace(refine_settings, learning_rate=1.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(warm, step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.5)
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert {learning_rate(refine_settings, step, 12) for step in range(12)} == {refine_settings.learning_rate}


def test_everything_locked_is_refused(cached):
    write_params(cached, refine__lock_image=True, refine__lock_text=True)
    with pytest.raises(UserError, match="every weight is locked"):
        run_stage("refine", cached)


@pytest.mark.parametrize(
    ("write", "lowest"), [(write_tiny_clip, "visual.conv1."), (write_tiny_timm_clip, "visual.trunk.")]
)
def test_lower_layers_of_the_image_tower_learn_more_slowly(tmp_path, refine_settings, write, lowest):
    """Every weight is in one group; the last layer has the whole rate, each one before it a factor less."""
    clip = model.load(write(tmp_path / "clip"))
    chosen = replace(refine_settings, learning_rate=1e-2, layer_decay=0.5)
    select_trainable(clip, chosen)
    name_of = {id(parameter): name for name, parameter in clip.module.named_parameters()}
    groups = [
        (g.get("highest"), [name_of[id(p)] for p in g["params"]]) for g in make_optimizer(clip, chosen).param_groups
    ]
    *layers, (text_rate, text) = groups
    named = [name for _, names in groups for name in names]
    assert len(named) == len({*named})
    assert {*named} == {*name_of.values()} - {"logit_scale"}
    assert text_rate is None
    assert not any(name.startswith("visual.") for name in text)
    rates = [rate for rate, _ in layers]
    assert rates == pytest.approx([1e-2 * 0.5**power for power in range(len(layers) - 1, -1, -1)])
    assert any(name.startswith(lowest) for name in layers[0][1])
    assert any("proj" in name for name in layers[-1][1])


def test_layers_that_are_not_known_are_refused(tmp_path):
    clip = model.load(write_tiny_clip(tmp_path / "clip"))
    clip.module.visual = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"refine.layer_decay: the layers of a Linear are not known here; write null"):
        model.image_layers(clip)
