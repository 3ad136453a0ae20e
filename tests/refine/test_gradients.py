"""Exactness of the step: chunks and processes do not change the gradient, nor does what saves time, but to rounding."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline_lib.core import config
from pipeline_lib.core.distributed import World
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.optimiser import make_optimizer, select_trainable
from pipeline_lib.refine.settings import RefineSettings
from tests.step_case import B, blocks, case, gradients, largest_difference, plain_gradients
from tests.tiny_model import write_tiny_clip

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
@pytest.mark.parametrize("micro_batch", [None, 1, 4])
def test_chunks_give_the_gradient_of_the_whole_batch(tiny_clip, refine_settings, name, micro_batch):
    """Every recipe, learnable logit scale, uneven last chunk: equal to plain autograd to 1e-12."""
    clip, inputs, teacher, draws = case(tiny_clip)
    select_trainable(clip, replace(refine_settings, train_logit_scale=True))
    recipe = recipes.make_recipe(name, blocks())
    expected = plain_gradients(clip, recipe, inputs, teacher, draws)
    clip.module.zero_grad(set_to_none=True)
    backward(Encoders(student=clip), recipe, inputs, teacher, draws, micro_batch=micro_batch)
    assert largest_difference(gradients(clip), expected) < 1e-12


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_groups_of_texts_by_length_give_the_gradient_of_the_whole_batch(tiny_clip, refine_settings, micro_batch):
    """Each text cut with those of its own length, back in its place: equal to plain autograd on whole texts."""
    clip, inputs, teacher, draws = case(tiny_clip)
    select_trainable(clip, refine_settings)
    recipe = recipes.make_recipe("clip_refine", blocks())
    expected = plain_gradients(clip, recipe, inputs, teacher, draws)
    widths = []

    class Watched(Encoders):
        @property
        def _calls(self):
            image, text = super()._calls
            return image, lambda ids: widths.append(ids.shape) or text(ids)

    clip.module.zero_grad(set_to_none=True)
    backward(Watched(student=clip, text_groups=3), recipe, inputs, teacher, draws, micro_batch=micro_batch)
    assert largest_difference(gradients(clip), expected) < 1e-12
    lengths = sorted(clip.text_lengths(inputs.texts).tolist())
    assert max(width for _, width in widths) == lengths[-1] < inputs.texts.shape[1]
    assert min(width for _, width in widths) < lengths[-1]


def test_second_pass_repeats_the_first_with_dropout_on(tmp_path, refine_settings):
    """With stochastic layers the recomputed chunk must draw the same masks: equal to a hand-made reference."""
    tiny_clip = write_tiny_clip(tmp_path / "clip", seed=1)
    clip, inputs, teacher, draws = case(tiny_clip)
    for block in clip.module.visual.transformer.resblocks:
        block.ls_1 = torch.nn.Dropout(0.3)
    select_trainable(clip, replace(refine_settings, stochastic_layers=True))
    recipe = recipes.make_recipe("hycd", blocks())
    seen = []

    class Recording(Encoders):
        def __call__(self, chunk):
            image, text = super().__call__(chunk)
            seen.append((image.detach().clone(), text.detach().clone()))
            return image, text

    torch.manual_seed(5)
    backward(Recording(student=clip), recipe, inputs, teacher, draws, micro_batch=2)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    clip.module.zero_grad(set_to_none=True)
    torch.manual_seed(6)
    backward(Encoders(student=clip), recipe, inputs, teacher, draws, micro_batch=2)
    image_again = seen[0][0]
    torch.manual_seed(5)
    assert torch.equal(Encoders(student=clip)(Inputs(*(x[:2] for x in inputs)))[0], image_again)  # dropout was on


def three_steps(tiny_clip, name, rows, world, micro_batch=None, follow=None):
    """Terms and gradients of three AdamW steps in fp64 on the first `rows` pairs of the case, and the weights after.

    With `follow`, the gradients of another run, each step is taken with those instead of its own.
    """
    clip, inputs, teacher, draws = case(tiny_clip)
    refine_settings = replace(
        config.load(ROOT / "params.yaml", RefineSettings), train_logit_scale=True, learning_rate=1e-3
    )
    select_trainable(clip, refine_settings)
    optimizer = make_optimizer(clip, refine_settings)
    own = Inputs(*(x[:rows][world.own_rows(rows)] for x in inputs))
    teacher = Features(teacher[0][:rows], teacher[1][:rows], teacher[2])
    draws = replace(draws, key_digests=draws.key_digests[:rows])
    steps = []
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        recipe = recipes.make_recipe(name, blocks())
        terms = backward(Encoders(student=clip), recipe, own, teacher, draws, micro_batch=micro_batch, world=world)
        steps.append({"terms": terms, "gradients": gradients(clip)})
        for key, parameter in clip.module.named_parameters() if follow else ():
            if parameter.grad is not None:
                parameter.grad.copy_(follow[step]["gradients"][key])
        optimizer.step()
    return {"steps": steps, "weights": dict(clip.module.state_dict())}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [B, B - 1])
def test_two_processes_equal_one(tiny_clip, tmp_path, rows):
    """torchrun with 2 Gloo processes, even and uneven shares, every recipe, learnable logit scale, in fp64.

    Terms and gradients of each of three steps are one process's to 1e-10. Weights are not compared with those of a run
    of its own: Adam divides by |g|, so where a gradient is 0 but for rounding (the key biases'), it makes whole steps
    of the rounding. Instead one process takes the steps with the gradients of two: what it computes at the weights of
    the two is then held to 1e-10 at every step, and its weights at the end are theirs, bitwise.
    """
    result = tmp_path / "out.pt"
    script = tmp_path / "world.py"
    script.write_text(
        "import torch\nfrom pathlib import Path\nfrom tests.refine.test_gradients import *\n"
        "from pipeline_lib.core import distributed\n"
        "world = distributed.join()\n"
        f"found = {{n: three_steps(Path({str(tiny_clip)!r}), n, {rows}, world, 2) for n in sorted(recipes.RECIPES)}}\n"
        f"if world.is_main:\n    torch.save(found, {str(result)!r})\n"
        "distributed.leave()\n"
    )
    run_on_processes(2, script)
    found = torch.load(result, weights_only=True)
    assert sorted(found) == sorted(recipes.RECIPES)
    for name, two in found.items():
        one = three_steps(tiny_clip, name, rows, World(), follow=two["steps"])
        for step, (mine, theirs) in enumerate(zip(one["steps"], two["steps"], strict=True)):
            for kind, values in mine.items():
                assert largest_difference(theirs[kind], values, floor=1e-6) < 1e-10, (name, step, kind)
        assert one["weights"].keys() == two["weights"].keys()
        assert all(torch.equal(one["weights"][key], two["weights"][key]) for key in one["weights"]), name


def run_on_processes(count, script):
    """A script under torchrun, one thread each."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
    subprocess.run(command, check=True, env=env, cwd=ROOT, timeout=300)


def test_world_shares_and_slices_cover_the_batch():
    for size in (1, 2, 3, 5):
        for rows in (5, 6, 7, 20):
            covered = [i for rank in range(size) for i in range(rows)[World(rank, size).own_rows(rows)]]
            assert covered == list(range(rows))


def test_bf16_autocast_stays_within_two_per_cent(tiny_clip, refine_settings):
    """Terms in bf16 are close to fp32 but not equal, and the losses themselves stay in fp32."""
    clip, inputs, teacher, draws = case(tiny_clip, torch.float32)
    select_trainable(clip, refine_settings)
    recipe = recipes.make_recipe("clip_refine", blocks())
    exact = backward(Encoders(student=clip), recipe, inputs, teacher, draws)
    clip.module.zero_grad(set_to_none=True)
    rough = backward(Encoders(student=clip, precision="bf16"), recipe, inputs, teacher, draws)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert float(rough[name]) == pytest.approx(float(value), rel=2e-2)
        assert abs(float(rough[name]) - float(value)) > 1e-6 * float(value)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled_towers_stay_within_rounding_of_plain_ones(tiny_clip, refine_settings):
    """Terms within 1e-5, gradients within 1e-4 of their largest entry, in fp32; a second batch needs no other code."""
    recipe = recipes.make_recipe("clip_refine", blocks())
    found = []
    for compiled in (False, True):
        clip, inputs, teacher, draws = case(tiny_clip, torch.float32)
        select_trainable(clip, refine_settings)
        encoders = Encoders(student=clip, compile=compiled)
        terms = backward(encoders, recipe, inputs, teacher, draws)
        found.append((terms, gradients(clip)))
    for name, value in found[0][0].items():
        assert float(found[1][0][name]) == pytest.approx(float(value), rel=1e-5)
    assert largest_difference(found[1][1], found[0][1], floor=1e-6) < 1e-4
