"""Stage `language` and all that rest on it: what is cached is what the finished model computes from a text."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.student import load_student
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.adapter import Shape
from pipeline_lib.model.embed import embed_texts
from pipeline_lib.model.features import Features, row_difference
from pipeline_lib.refine import recipes
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.sampling import Draws
from tests.cached_project import open_cached, stage_process
from tests.conftest import run_stage
from tests.language.asked import ADAPTER, ASKED
from tests.refine.runs import QUIET, history, interrupt_at, weights
from tests.step_case import gradients, largest_difference
from tests.tiny_model import write_tiny_language, write_tiny_timm_clip
from tests.tiny_project import write_params

TWO_STAGES = {"language__stages": {"make": {}, "more": {}}}
LOCKED = {"refine__lock_image": True}


@pytest.fixture
def asked(sharded):
    """A project whose captions a tiny decoder reads, before `cache_teacher`."""
    write_tiny_language(sharded / "llama")
    write_params(sharded, **ASKED)
    run_stage("language", sharded)
    return sharded


@pytest.fixture
def with_language(asked):
    run_stage("cache_teacher", asked)
    return asked


def has_learned(project):
    losses = [row["loss"] for row in history(project)]
    return sum(losses[-5:]) < sum(losses[:5])


def refined(project, **changes):
    write_params(project, **{**ASKED, **changes})
    run_stage("refine", project)
    return weights(project)


def test_what_the_stage_writes_says_where_it_comes_from(asked):
    manifest = artifacts.read_manifest(asked / "data/language", stage="language")
    found = manifest["language"]
    assert found["source"] == {"kind": "folder", "folder": "llama"}
    assert (found["width"], found["causal"], found["pooling"]) == (32, True, "mean")
    assert manifest["parameters"]["language"]["max_length"] == 20
    assert str(asked) not in json.dumps(manifest)


@torch.no_grad()
def test_cached_features_of_captions_are_bitwise_those_of_the_model_and_teachers_stay_as_they_were(
    with_language, cached
):
    part, student, _ = open_cached(with_language)
    before, _, _ = open_cached(cached)
    rows = list(range(12))
    captions = [int(count) - 1 for count in part.num_captions[rows]]
    texts = [part.entry(row)[1].captions[caption] for row, caption in zip(rows, captions, strict=True)]
    stored = part.read_inputs(rows, captions).texts
    fresh = embed_texts(student, student.tokenize(texts)[:, : part.text_length], 8)
    assert torch.equal(stored, fresh)
    for mine, theirs in zip(part.read_features(rows, captions), before.read_features(rows, captions), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("changes", [{}, LOCKED, {"refine__adapter": {**ADAPTER, "depth": 1}}])
def test_the_finished_model_gives_a_text_the_adapter_of_its_cached_features(with_language, changes):
    """Trained from the cache, run from texts: published LLM2CLIP is another model in one than in the other."""
    part, _, _ = open_cached(with_language)
    refined(with_language, **changes, refine__epochs=6)
    final = model.load(with_language / "data/refined")
    inputs = part.read_inputs([0, 1, 2], [0, 1, 0])
    texts = [part.entry(row)[1].captions[caption] for row, caption in ((0, 0), (1, 1), (2, 0))]
    with torch.no_grad():
        assert row_difference(final.encode_text(final.tokenize(texts)), final.encode_text(inputs.texts)) < 1e-6
    assert has_learned(with_language)


def test_a_locked_tower_s_images_are_read_from_the_cache_and_train_the_same(with_language, monkeypatch, caplog):
    """No pixel is decoded for a step, and the tower does not run; its own pixels give the weights to rounding."""
    from pipeline_lib.refine import run

    with caplog.at_level("INFO"):
        cached = refined(with_language, **LOCKED)
    assert "no pixel is" in caplog.text
    monkeypatch.setattr(run, "_keeps_images", lambda job: False)
    plain = refined(with_language, **LOCKED)
    for name in cached:
        torch.testing.assert_close(cached[name], plain[name], atol=1e-5, rtol=1e-4)
    base = safetensors.torch.load_file(with_language / "data/base/open_clip_model.safetensors")
    assert all(torch.equal(cached[name], base[name]) for name in cached if name.startswith("visual."))
    assert (
        artifacts.read_manifest(with_language / "data/refined")["weight_displacement"] is None
    )  # no weight of the base
    assert "learning rate x steps is too small" not in caplog.text


def test_a_tower_with_a_head_of_its_own_is_locked_with_it(sharded, tmp_path):
    """timm's towers project by a head, which open_clip's own lock leaves free."""
    shutil.rmtree(sharded / "clip")
    write_tiny_timm_clip(sharded / "clip")
    write_tiny_language(sharded / "llama")
    write_params(sharded, **ASKED, **LOCKED)
    for stage in ("base", "shard", "language", "cache_teacher", "refine"):
        run_stage(stage, sharded)
    found, base = weights(sharded), safetensors.torch.load_file(sharded / "data/base/open_clip_model.safetensors")
    assert all(torch.equal(found[name], base[name]) for name in found if name.startswith("visual."))


def test_the_adapter_learns_at_its_own_rate(with_language):
    still = refined(with_language, refine__learning_rate=0.0, refine__weight_decay=0.0)
    base = safetensors.torch.load_file(with_language / "data/base/open_clip_model.safetensors")
    assert all(torch.equal(still[name], base[name]) for name in still if name.startswith("visual."))
    start = refined(
        with_language,
        refine__learning_rate=0.0,
        refine__weight_decay=0.0,
        refine__adapter=ADAPTER | {"learning_rate": 0.0},
    )
    moved = still["text.adapter.proj.weight"] - start["text.adapter.proj.weight"]
    assert 1e-3 < float(moved.abs().max()) < 0.1


def test_no_anchor_is_the_contrastive_recipe_bitwise(with_language):
    plain, llm2clip = (refined(with_language, refine__recipe=name) for name in ("contrastive", "llm2clip"))
    assert all(torch.equal(plain[name], llm2clip[name]) for name in plain)


@pytest.mark.parametrize("recipe", ["clip_refine", "hycd", "feature_kd", "m2_mix", "logit_kd"])
def test_the_other_recipes_work_unchanged_on_a_language_model(with_language, recipe):
    values = {"refine__recipe": recipe, "refine__train_logit_scale": recipe == "m2_mix", "refine__logit_scale": None}
    refined(with_language, **values, refine__epochs=6)
    assert has_learned(with_language)


def test_a_resumed_run_ends_with_the_weights_of_the_whole_one(with_language, monkeypatch):
    whole = refined(with_language, **QUIET)
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(with_language, **QUIET)
    resumed = refined(with_language, **QUIET)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("pixels", [True, False])
def test_chunks_do_not_change_the_gradient_nor_do_cached_images(with_language, pixels):
    """In double precision, against one graph and one backward pass over the whole batch."""
    part, _, paths = open_cached(with_language)
    _, student = load_student(paths, adapter=Shape(1, 2, 0.0), logit_scale=14.3)
    student.module.double()
    rows = list(range(7))
    inputs = part.read_inputs(rows, [0] * 7)
    if not pixels:
        student.module.visual.requires_grad_(False)
        inputs = inputs._replace(images=student.encode_image(inputs.images))
    features = [torch.randn(7, 16, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1)]
    teacher = Features(*features, torch.tensor(12.0, dtype=torch.float64))
    draws = Draws(seed=0, epoch=0, step=0, progress=0.0, key_digests=[bytes([i] * 16) for i in range(7)])
    recipe = recipes.make_recipe("llm2clip", {"llm2clip": {"image_anchor": 0.3, "text_anchor": 0.2}})
    images = student.encode_image(inputs.images) if pixels else inputs.images
    whole = Features(images, student.encode_text(inputs.texts), student.logit_scale)
    recipes.total_loss(recipe(whole, teacher, draws)).backward()
    expected = gradients(student)
    for size in (None, 3):
        student.module.zero_grad(set_to_none=True)
        backward(Encoders(student=student), recipe, inputs, teacher, draws, micro_batch=size)
        assert largest_difference(gradients(student), expected) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, LOCKED])
def test_two_processes_train_as_one(with_language, changes):
    """torchrun through `runtime.processes: 2`, to fp32 rounding."""
    values = {**changes, "refine__eps": 1e-3, "refine__batch_size": 6}
    whole = refined(with_language, **values)
    write_params(with_language, **{**ASKED, **values, "runtime__processes": 2})
    process = stage_process(with_language, "refine")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    for name, value in weights(with_language).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_that_does_not_fit_into_the_memory_is_refused_before_it_is_made(with_language):
    write_params(with_language, **ASKED | {"refine__adapter": {**ADAPTER, "depth": 10**9}})
    with pytest.raises(
        UserError, match=r"refine.adapter: \d+.\d GB for its weights, gradients and optimiser, and .*lower"
    ):
        run_stage("refine", with_language)


def test_half_precision_halves_the_cache_and_an_overflow_is_refused(asked):
    write_params(asked, **ASKED, cache_teacher__language_dtype="float16")
    run_stage("cache_teacher", asked)
    part, _, _ = open_cached(asked)
    assert part.units[0]["language_features"].dtype == torch.float16
    assert part.read_inputs([0], [0]).texts.dtype == torch.float32
    path = asked / "llama/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**tensors, "norm.weight": tensors["norm.weight"] * 1e5}, path, {"format": "pt"})
    run_stage("language", asked)
    with pytest.raises(
        UserError, match=r"language_features: \d+ of \d+ are not finite; .*cache_teacher.language_dtype"
    ):
        run_stage("cache_teacher", asked)


def test_a_cache_of_another_language_model_is_refused(with_language):
    write_params(with_language, **ASKED | {"language__pooling": "last"})
    run_stage("language", with_language)
    with pytest.raises(UserError, match=r"not the cache for this configuration \(language.pooling: cache has 'mean'"):
        run_stage("refine", with_language)


def test_a_language_folder_that_was_changed_is_refused_before_the_first_step(with_language):
    (with_language / "data/language/tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config.json"):
        run_stage("refine", with_language)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths__text": "data/base"}, r"paths.text does not ask for it"),
        ({"refine__adapter": None}, r"refine.adapter does not ask for it"),
        ({"language__stages": {}}, r"language.stages does not ask for it"),
        ({"paths__text": "elsewhere"}, r"paths.text: `elsewhere` is neither paths.base nor paths.language"),
        ({"refine__lock_text": True}, r"refine.lock_text: true, but a language model is never trained"),
        ({"cache_teacher__mode": "online"}, r"cache_teacher.mode: `online` reads token ids"),
        ({"language__prompt": "say"}, r"language.prompt: 'say' must hold \{\} once"),
        (TWO_STAGES, r"language.stages: there is one stage, `make`"),
        ({"language__path": "nowhere"}, r"language.path: nowhere: no such folder"),
        ({"language__path": None}, r"language.path: missing; `source: folder` needs"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_sentence(sharded, changes, message):
    write_tiny_language(sharded / "llama")
    write_params(sharded, **{**ASKED, **changes})
    with pytest.raises(UserError, match=message):
        run_stage("language", sharded)
    assert not (sharded / "data/language").exists()


def test_all_stages_end_in_a_report_that_says_what_reads_the_texts(with_language):
    write_params(with_language, **ASKED, evaluate__wise_ft=[0.5])
    for stage in ("refine", "evaluate", "report"):
        run_stage(stage, with_language)
    results = json.loads((with_language / "data/eval/refined/results.json").read_text())
    assert "wise_ft" not in results
    page = (with_language / "data/report/report.md").read_text()
    assert "a frozen language model (folder: `llama`; causal, mean pooling, 20 tokens)" in page
    assert "an adapter (a linear map) in place of the base's text tower" in page
    assert "Texts of base and refined model live in different spaces." in page
