"""An image tower with a language model for a text side: an old model said in the new way is the old model."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline_lib import model
from pipeline_lib.base import demo
from pipeline_lib.core.errors import UserError
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.language.sources import read_source
from pipeline_lib.model.adapter import Adapter, Shape, num_weights
from pipeline_lib.model.embed import embed_texts, embed_texts_by_length
from pipeline_lib.model.features import row_difference
from pipeline_lib.model.language import LanguageModel, Reading, load_language, read_transformers, save_language
from tests.base.made import materialise, siglip_model
from tests.base.test_demo import SETTINGS
from tests.tiny_model import COCA, custom_clip, write_tiny_language, write_tiny_timm_clip

TEXTS = ["a photo of a cat", "two dogs on a hill near a river, seen from the other side", "a", "a red bird"]


@pytest.fixture
def language(tmp_path):
    folder = write_tiny_language(tmp_path / "llama")
    reading = Reading(attention="own", pooling="mean", prompt="{}", max_length=24)
    save_language(LanguageModel(*read_transformers(folder), reading, folder), tmp_path / "language")
    return tmp_path / "language"


def joined(base, language, shape=Shape(depth=0, expansion=2, dropout=0.0), **options):  # noqa: B008
    return model.join(base, language, load_language(language).facts(), shape, **options)


@torch.no_grad()
def test_minilm_with_the_demo_base_s_own_projection_is_the_demo_base(tmp_path):
    """The whole new path against the old one: tokenizer, tower, pooling, projection; same order of all texts."""
    base = demo.join_towers(SETTINGS, tmp_path / "base")
    reading = Reading(attention="own", pooling="mean", prompt="{}", max_length=base.context_length)
    settings = LanguageSettings(stages={}, source="minilm", path=None, tune=None, **reading.__dict__)
    module, tokenizer, *_ = read_source(settings)
    save_language(LanguageModel(module, tokenizer, reading, tmp_path), tmp_path / "language")
    new = joined(base, tmp_path / "language")
    new.module.text["adapter"].proj.weight.copy_(base.module.text.proj.weight)
    long = [" ".join(TEXTS * 9)]
    expected, found = (clip.encode_text(clip.tokenize(TEXTS + long)) for clip in (base, new))
    assert row_difference(found, expected) < 1e-6
    ids = new.tokenize(TEXTS + long)
    assert new.truncated(TEXTS + long, ids).tolist() == [False] * 4 + [True]
    assert torch.equal(new.truncated(TEXTS + long, ids), base.truncated(TEXTS + long, base.tokenize(TEXTS + long)))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(new.encode_image(images), base.encode_image(images))


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("image_tower", ["native", "timm", "described", "coca"])
def test_a_saved_folder_loads_back_with_the_same_features_and_survives_a_move(
    tiny_clip, language, tmp_path, depth, image_tower
):
    """From token ids, and from the language model's features, which training reads from a cache."""
    if image_tower == "described":  # in config.json, as that of transformers' SigLIP is
        siglip_model(tmp_path / "siglip")
        base = materialise(tmp_path / "base", path=str(tmp_path / "siglip"))
    elif image_tower == "coca":
        base = custom_clip(tmp_path / "coca", **COCA)
        base.module.float()
    else:
        base = model.load(tiny_clip if image_tower == "native" else write_tiny_timm_clip(tmp_path / "timm"))
    clip = joined(base, language, Shape(depth, 2, 0.0), seed=3, logit_scale=14.3)
    pixels = torch.randint(0, 256, (2, 3, *clip.image_size), dtype=torch.uint8)
    expected = clip.encode_text(clip.tokenize(TEXTS))
    model.save(clip, tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    language.rename(tmp_path / "gone")
    again = model.load(tmp_path / "moved")
    ids = again.tokenize(TEXTS)
    assert torch.equal(again.encode_text(ids), expected)
    assert torch.equal(again.encode_image(pixels), base.encode_image(pixels))
    assert model.compute_facts(again)["config_digest"] == model.compute_facts(clip)["config_digest"]
    features = again.language().encode(ids)
    assert torch.equal(again.encode_text(features), expected)
    assert float(again.logit_scale) == pytest.approx(14.3)
    assert not any("language" in name for name in again.module.state_dict())  # it is no part of what is trained
    plain, preprocess, tokenizer = model.open_folder(tmp_path / "moved")
    assert torch.equal(plain.encode_text(tokenizer(TEXTS), normalize=True), F.normalize(expected, dim=-1))
    assert preprocess.config == clip.preprocess.config


@torch.no_grad()
def test_texts_sorted_by_length_and_cut_have_the_features_of_whole_ones(tiny_clip, language):
    clip = joined(model.load(tiny_clip), language)
    ids = clip.tokenize(TEXTS * 3)
    assert clip.text_lengths(ids).tolist() == [(len(text.replace(",", " ,").split()) + 1) for text in TEXTS * 3]
    whole, cut = embed_texts(clip, ids, 8), embed_texts_by_length(clip, ids, 8, multiple=1)
    assert row_difference(cut, whole) < 1e-6


@torch.no_grad()
def test_depth_0_is_one_matrix_and_blocks_that_add_nothing_are_a_norm_and_a_matrix():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    linear = Adapter(12, 7, Shape(0, 2, 0.0)).double()
    assert torch.equal(linear(features), features @ linear.proj.weight.T)
    assert [name for name, _ in linear.named_parameters()] == ["proj.weight"]
    deep = Adapter(12, 7, Shape(3, 2, 0.5)).double().eval()
    for block in deep.blocks:
        block.narrow.weight.zero_()
        block.narrow.bias.zero_()
    expected = F.layer_norm(F.normalize(features, dim=-1), (12,)) @ deep.proj.weight.T + deep.proj.bias
    torch.testing.assert_close(deep(features), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(deep(9 * features), deep(features), atol=1e-12, rtol=0)  # normalised first


@pytest.mark.parametrize("shape", [Shape(0, 2, 0.0), Shape(3, 2, 0.5), Shape(1, 4, 0.0)])
def test_the_weights_are_counted_as_they_are_made(shape):
    assert num_weights(12, 7, shape) == sum(p.numel() for p in Adapter(12, 7, shape).parameters())


def test_the_adapter_is_a_pure_function_of_the_seed(tiny_clip, language):
    base = model.load(tiny_clip)
    state = torch.get_rng_state()
    a, b, c = (joined(base, language, seed=seed).module.text["adapter"].proj.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_language_model_than_the_adapter_s_is_refused(tiny_clip, language, tmp_path):
    clip = joined(model.load(tiny_clip), language)
    model.save(clip, tmp_path / "saved")
    reading = tmp_path / "saved/language/language.json"
    reading.write_text(json.dumps({**json.loads(reading.read_text()), "pooling": "last"}))
    found = model.load(tmp_path / "saved")  # nothing is asked of it before a text comes
    with pytest.raises(
        UserError, match=r"not the language model that the adapter was trained for: pooling differs; put"
    ):
        found.tokenize(TEXTS)


def test_facts_tell_one_text_side_from_another(tiny_clip, language):
    base = model.load(tiny_clip)
    facts = [model.compute_facts(joined(base, language, shape)) for shape in (Shape(0, 2, 0.0), Shape(1, 2, 0.0))]
    assert facts[0]["config_digest"] != facts[1]["config_digest"] != base.facts["config_digest"]
    assert facts[0]["tokenizer_digest"] == facts[0]["language"]["tokenizer_digest"] != base.facts["tokenizer_digest"]
    assert facts[0]["preprocess"] == base.facts["preprocess"]
    assert facts[0]["language"]["width"] == 32


def test_plain_open_clip_does_not_load_half_of_it(tiny_clip, language, tmp_path):
    import open_clip

    model.save(joined(model.load(tiny_clip), language), tmp_path / "saved")
    with pytest.raises(RuntimeError, match=r"text\.adapter\.proj\.weight"):
        open_clip.create_model_and_transforms(f"local-dir:{Path(tmp_path / 'saved')}")
