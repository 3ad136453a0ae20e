"""Loud stops before the first step and after the last one."""

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.core import distributed
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.refine import checks, recipes
from pipeline_lib.refine.checks import check_step_zero
from tests.cached_project import open_cached
from tests.conftest import run_stage
from tests.refine.runs import refined
from tests.tiny_project import write_params


@pytest.mark.parametrize("side", ["image_features", "text_features"])
def test_rows_of_one_unit_that_changed_places_are_noticed_before_the_first_step(cached, side, monkeypatch):
    """Also where there are more units than rows would be compared otherwise."""
    part, clip, _ = open_cached(cached)
    monkeypatch.setattr(checks, "STEP0_ROWS", 1)
    assert check_step_zero(clip, part, 1e-4) <= 1e-4
    _, unit, *others = part.units
    assert others
    unit[side][:] = unit[side].roll(1, 0)
    with pytest.raises(UserError, match=r"before the first step .* more than refine.step0_tolerance 1e-04"):
        check_step_zero(clip, part, 1e-4)


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


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize(
    ("used", "trained", "idle", "remedy"),
    [
        (None, True, "logit_scale", "refine.train_logit_scale to false"),
        ("scale", True, "logit_bias", "refine.train_logit_scale to false"),  # of SigLIP
        ("image", False, r"positional_embedding, .* and \d+ more", "refine.lock_text to true"),
        ("text", False, r"visual\.class_embedding, .* and \d+ more", "refine.lock_image to true"),
    ],
)
def test_weights_that_the_loss_does_not_depend_on_are_named_with_the_key_to_change(
    cached, monkeypatch, micro_batch, used, trained, idle, remedy
):
    """By the whole stage, after the first step's gradient; nothing is published."""

    def partial(student, teacher, draws):
        image, text = student.raw_image_features, student.raw_text_features
        kept = {"image": image, "text": text, "scale": student.logit_scale * image @ text.T, None: image @ text.T}
        return {"partial_loss": kept[used].square().mean()}

    monkeypatch.setitem(recipes.RECIPES, "contrastive", partial)
    partial.raw_logits = False
    load = model.load

    def with_bias(*arguments, **options):
        clip = load(*arguments, **options)
        clip.module.logit_bias = torch.nn.Parameter(torch.tensor(-10.0)) if used == "scale" else None
        return clip

    monkeypatch.setattr(model, "load", with_bias)
    values = {"refine__train_logit_scale": trained, "refine__micro_batch": micro_batch}
    write_params(cached, refine__recipe="contrastive", **values)
    with pytest.raises(UserError, match=rf"^refine: .*`contrastive` does not depend on them: {idle}; set {remedy}, or"):
        run_stage("refine", cached)
    assert not (cached / "data/refined").exists()


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
