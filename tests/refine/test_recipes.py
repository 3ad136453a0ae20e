"""Every recipe builds from params.yaml, refuses a wrong block, and is the equation its docstring states."""

import inspect
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline_lib import losses
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.features import Features
from pipeline_lib.refine import recipes
from pipeline_lib.refine.sampling import Draws

ROOT = Path(__file__).parents[2]
BLOCKS = config.raw_section(ROOT / "params.yaml", "recipes")
B, D = 5, 8
DRAWS = Draws(seed=0, epoch=0, step=0, progress=0.25, key_digests=[bytes([i] * 16) for i in range(B)])


def features(seed, width=D):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(B, width, dtype=torch.float64, generator=generator) * 3 for _ in range(2)]
    return Features(rows[0], rows[1], torch.tensor(20.0, dtype=torch.float64))


def run(name, student=None, teacher=None, draws=DRAWS, **changes):
    blocks = {name: {**BLOCKS[name], **changes}}
    return recipes.make_recipe(name, blocks)(student or features(1), teacher or features(2), draws)


def test_every_function_of_the_signature_is_a_recipe_with_a_block():
    """A recipe without its decorator, or without its block in params.yaml, would be one that nobody can choose."""
    functions = {
        name: function
        for name, function in inspect.getmembers(recipes, inspect.isfunction)
        if [*inspect.signature(function).parameters][:3] == ["student", "teacher", "draws"]
    }
    assert "clip_refine" in functions
    assert functions == recipes.RECIPES
    assert sorted(BLOCKS) == sorted(functions)


def scaled(found, image, text):
    return found._replace(
        raw_image_features=found.raw_image_features * image, raw_text_features=found.raw_text_features * text
    )


@pytest.mark.parametrize("logits", typing.get_args(recipes.Logits))
@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_recipes_that_compare_raw_dot_products_say_so(name, logits):
    """Those with a term that minds longer image features, but not if the text features are shorter for it.

    Cosines mind neither, regressions on features mind both.
    """
    block = {**BLOCKS[name], "logits": logits} if "logits" in BLOCKS[name] else BLOCKS[name]
    made = recipes.make_recipe(name, {name: block})
    plain, longer, balanced = (
        made(scaled(features(1), *factors), scaled(features(2), *factors), DRAWS)
        for factors in ((1, 1), (1.5, 1), (1.5, 1 / 1.5))
    )
    same = {
        key: [bool(torch.isclose(value, other[key])) for other in (longer, balanced)] for key, value in plain.items()
    }
    assert made.uses_raw_logits == ([False, True] in same.values()), same


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_terms_are_finite_and_end_in_loss(name):
    terms = run(name)
    assert terms
    assert all(key.endswith("_loss") for key in terms)
    assert all(torch.isfinite(value) and value.dtype == torch.float64 for value in terms.values())


def test_total_sums_the_losses_and_passes_over_the_rest():
    terms = {"a_loss": torch.tensor(1.0), "b_loss": torch.tensor(2.0), "accuracy": torch.tensor(50.0)}
    assert recipes.total_loss(terms) == 3.0
    with pytest.raises(ValueError, match="no term ends in"):
        recipes.total_loss({"accuracy": torch.tensor(1.0)})


def test_clip_refine_is_rafa_plus_hycd_on_raw_features():
    s, t = features(1), features(2)
    reference = DRAWS.normal(D)[0].double()
    terms = run("clip_refine", s, t)
    f, g = s.raw_image_features, s.raw_text_features
    torch.testing.assert_close(terms["rafa_loss"], losses.rafa_loss(f, g, reference))
    expected = losses.hycd_loss(f @ g.T, t.raw_image_features @ t.raw_text_features.T, alpha=0.5)
    torch.testing.assert_close(terms["hycd_loss"], expected)
    assert sorted(terms) == ["hycd_loss", "rafa_loss"]


def test_weights_scale_terms_and_zero_leaves_them_out():
    one, two = run("clip_refine"), run("clip_refine", rafa_weight=2.0)
    torch.testing.assert_close(two["rafa_loss"], 2 * one["rafa_loss"])
    infinite = Features(features(1)[0] * float("inf"), features(1)[1], features(1)[2])
    assert list(run("clip_refine", rafa_weight=0.0)) == ["hycd_loss"]
    assert list(run("clip_refine", student=infinite, hycd_weight=0.0)) == ["rafa_loss"]
    assert list(run("hycd_align", align_weight=0.0)) == ["hycd_loss"]
    assert list(run("m2_mix", mix_weight=0.0)) == ["contrastive_loss"]


def test_scaled_cosine_uses_each_models_own_logit_scale():
    s, t = features(1), replace_scale(features(2), 7.0)
    value = run("hycd", s, t, logits="scaled_cosine")["hycd_loss"]
    cosines = [F.normalize(x.raw_image_features) @ F.normalize(x.raw_text_features).T for x in (s, t)]
    torch.testing.assert_close(value, losses.hycd_loss(20.0 * cosines[0], 7.0 * cosines[1]))


def replace_scale(found, scale):
    return found._replace(logit_scale=torch.tensor(scale, dtype=torch.float64))


def test_self_kd_is_zero_at_the_teacher_and_contrastive_uses_cosines():
    s = features(1)
    assert float(run("self_kd", s, s)["self_kd_loss"]) == pytest.approx(0.0, abs=1e-12)
    logits = 20.0 * F.normalize(s.raw_image_features) @ F.normalize(s.raw_text_features).T
    torch.testing.assert_close(run("contrastive", s)["contrastive_loss"], losses.contrastive_loss(logits))
    raw = s.raw_image_features @ s.raw_text_features.T
    torch.testing.assert_close(run("contrastive_raw", s)["contrastive_loss"], losses.contrastive_loss(100 * raw))


def test_llm2clip_is_contrastive_with_one_minus_the_cosine_to_each_anchor():
    s, t = features(1), features(2)
    found = run("llm2clip", s, t, image_anchor=0.3, text_anchor=0.2)
    far = [1 - F.cosine_similarity(a, b).mean() for a, b in zip(s[:2], t[:2], strict=True)]
    torch.testing.assert_close(found["image_anchor_loss"], 0.3 * far[0])
    torch.testing.assert_close(found["text_anchor_loss"], 0.2 * far[1])
    assert torch.equal(found["contrastive_loss"], run("contrastive", s)["contrastive_loss"])


def prior(**changes):
    return {**BLOCKS["rafa"]["prior"], **changes}


def test_priors():
    s = features(1)
    f, g = s.raw_image_features, s.raw_text_features
    shrink = f.square().mean() + g.square().mean()
    torch.testing.assert_close(run("rafa", s, prior=prior(std=0.0))["rafa_loss"], shrink)
    torch.testing.assert_close(run("clip_refine_no_noise", s)["rafa_loss"], shrink)
    moved = (f - 2).square().mean() + (g - 2).square().mean()
    torch.testing.assert_close(run("rafa", s, prior=prior(std=0.0, mean=2.0))["rafa_loss"], moved)
    decayed = run("rafa", s, prior=prior(decay="linear"))["rafa_loss"]
    torch.testing.assert_close(decayed, 0.75 * run("rafa", s)["rafa_loss"])
    independent = losses.rafa_loss(f, g, DRAWS.normal(D, copies=2).double())
    torch.testing.assert_close(run("rafa", s, prior=prior(shared=False))["rafa_loss"], independent)
    uniform = losses.rafa_loss(f, g, DRAWS.uniform(D)[0].double())
    torch.testing.assert_close(run("rafa", s, prior=prior(kind="uniform"))["rafa_loss"], uniform)


def test_teacher_prior_uses_the_caches_statistics():
    s = features(1)
    known = replace(DRAWS, teacher_mean=torch.full((D,), 3.0), teacher_std=torch.full((D,), 0.5))
    expected = losses.rafa_loss(s.raw_image_features, s.raw_text_features, 3 + 0.5 * DRAWS.normal(D)[0].double())
    torch.testing.assert_close(run("rafa", s, draws=known, prior=prior(kind="teacher"))["rafa_loss"], expected)
    with pytest.raises(UserError, match=r"prior\.kind"):
        run("rafa", s, prior=prior(kind="teacher"))


def test_a_wider_teacher_can_distil_logits_but_not_features():
    wide = features(2, width=D + 3)
    assert torch.isfinite(run("clip_refine", teacher=wide)["hycd_loss"])
    with pytest.raises(ValueError, match="one shape"):
        run("feature_kd", teacher=wide)


def test_a_recipe_that_cannot_take_the_teachers_width_is_refused_before_it_runs():
    recipes.try_out(recipes.make_recipe("hycd", BLOCKS), "recipes.hycd", D, D + 3)
    with pytest.raises(UserError, match=r"^recipes.feature_kd: .*\(2, 8\) and \(2, 11\); take .* the base's width$"):
        recipes.try_out(recipes.make_recipe("feature_kd", BLOCKS), "recipes.feature_kd", D, D + 3)
    blocks = {"rafa": {"reduction": "mean", "prior": prior(kind="teacher")}}
    with pytest.raises(UserError, match=r"^recipes.rafa.prior.kind: `teacher` needs"):
        recipes.try_out(recipes.make_recipe("rafa", blocks), "recipes.rafa", D, D + 3)


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_batch_of_one(name):
    one = [x._replace(raw_image_features=x[0][:1], raw_text_features=x[1][:1]) for x in (features(1), features(2))]
    terms = run(name, one[0], one[1], draws=replace(DRAWS, key_digests=DRAWS.key_digests[:1]))
    assert all(torch.isfinite(value) for value in terms.values())


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("clip_refin", BLOCKS, "unknown recipe `clip_refin`; did you mean `clip_refine`"),
        ("hycd", {}, r"recipes.hycd: missing; add a block"),
        ("hycd", {"hycd": {**BLOCKS["hycd"], "alpa": 1.0}}, "recipes.hycd.alpa: unknown key; known: alpha"),
        ("hycd", {"hycd": {"alpha": 0.5, "logits": "raw"}}, "recipes.hycd.temperature: missing"),
        ("hycd", {"hycd": {**BLOCKS["hycd"], "alpha": "x"}}, "recipes.hycd.alpha: expected a number, found str 'x'"),
        ("rafa", {"rafa": {"reduction": "mean", "prior": {}}}, "recipes.rafa.prior.kind: missing"),
        ("rafa", {"rafa": {"reduction": "mean", "prior": prior(std=-1)}}, "recipes.rafa.prior.std: -1 is out of range"),
        ("hycd", {"hycd": {**BLOCKS["hycd"], "alpha": 1.5}}, "recipes.hycd.alpha: 1.5 is out of range: .* at most 1"),
        ("hycd", {"hycd": {**BLOCKS["hycd"], "temperature": 0}}, "recipes.hycd.temperature: 0 is out of .* above 0"),
        ("m2_mix", {"m2_mix": {"beta": 0, "mix_weight": 1.0}}, "recipes.m2_mix.beta: 0 is out of range"),
        (
            "clip_refine",
            {"clip_refine": {**BLOCKS["clip_refine"], "rafa_weight": 0, "hycd_weight": 0.0}},
            "recipes.clip_refine: every weight is 0, so there is no loss",
        ),
    ],
)
def test_wrong_blocks_are_refused(name, blocks, message):
    with pytest.raises(UserError, match=message):
        recipes.make_recipe(name, blocks)
