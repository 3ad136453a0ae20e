"""pipeline_lib.model.pooled: open_clip's own features and gradients, with one position through the last layer."""

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.model import pooled
from tests.tiny_model import COCA, custom_clip

CAPTIONS = ["a cat", "two dogs on a green hill", "the red house near the river", "", "eleven words " * 40]


def answers(clip, call):
    """Raw features, and the gradients of a weighting of them by the weights' names; fp64."""
    clip.module.zero_grad()
    torch.manual_seed(0)  # which patches are dropped
    features = call()
    weighting = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(2))
    (features * weighting).sum().backward()
    return features.detach(), {n: p.grad.clone() for n, p in clip.module.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-12)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    assert largest > 1e-3
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12 * largest)


def rows_of_last_mlp(clip, side, call):
    """The shape that the MLP of the last layer gets."""
    transformer = clip.module.visual.transformer if side == "image" else clip.text_tower.transformer
    shapes = []
    handle = transformer.resblocks[-1].mlp.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    call()
    handle.remove()
    return list(shapes[0][:-1])


def pixels_of(clip):
    return torch.randint(
        0, 256, (3, 3, *clip.image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


VISION = [
    {},
    {"ls_init_value": 0.1},
    {"final_ln_after_pool": True},
    {"no_ln_pre": True},
    {"pos_embed_type": "sin_cos_2d"},
    {"patch_dropout": 0.5},
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("vision", VISION)
def test_images_have_the_features_and_gradients_of_open_clip(vision, checkpointing, tmp_path):
    """The reference is open_clip's own forward pass; the last MLP sees one row of each image."""
    clip = custom_clip(tmp_path / "model", vision=vision, quick_gelu=bool(vision))
    clip.module.train("patch_dropout" in vision)
    pixels = pixels_of(clip)
    expected = answers(clip, lambda: clip.module.encode_image(clip.normalize(pixels)))
    clip.module.set_grad_checkpointing(checkpointing)
    assert_same(answers(clip, lambda: clip.encode_image(pixels)), expected)
    assert rows_of_last_mlp(clip, "image", lambda: clip.encode_image(pixels)) == [3]


@pytest.mark.parametrize(
    "vision", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 2}, COCA["vision"]]
)
def test_a_tower_that_pools_otherwise_runs_whole(vision, tmp_path):
    clip = custom_clip(tmp_path / "model", vision=vision)
    pixels = pixels_of(clip)
    assert not pooled.pools_class_token(clip.module.visual)
    found = clip.module.visual(clip.normalize(pixels))
    expected = found[0] if isinstance(found, tuple) else found
    clip.module.visual.output_tokens = False
    assert torch.equal(clip.encode_image(pixels), expected)


TEXT = [
    {},
    {"custom_text": True},
    {"text": {"proj_bias": True}},
    {"text": {"proj_type": "none", "width": 16}},
    {"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49407, "ls_init_value": 0.1}},
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", TEXT)
def test_texts_have_the_features_and_gradients_of_open_clip(config, checkpointing, tmp_path):
    """Of every length in one batch, the empty and the truncated among them."""
    clip = custom_clip(tmp_path / "model", **config)
    token_ids = clip.tokenize(CAPTIONS)
    expected = answers(clip, lambda: clip.module.encode_text(token_ids))
    clip.module.set_grad_checkpointing(checkpointing)
    assert_same(answers(clip, lambda: clip.encode_text(token_ids)), expected)
    assert rows_of_last_mlp(clip, "text", lambda: clip.encode_text(token_ids)) == [5]


def test_layers_of_another_kind_run_whole(tmp_path):
    """Normalised queries are a block of open_clip's own; the features are its own, too."""
    clip = custom_clip(tmp_path / "model", text={"qk_norm": True, "scale_attn": True})
    token_ids = clip.tokenize(CAPTIONS)
    expected = answers(clip, lambda: clip.module.encode_text(token_ids))
    assert_same(answers(clip, lambda: clip.encode_text(token_ids)), expected)
    assert rows_of_last_mlp(clip, "text", lambda: clip.encode_text(token_ids)) == [5, 77]


def test_subclasses_of_the_towers_run_whole(tmp_path):
    """Their forward passes may be others: these double what they give."""
    clip = custom_clip(tmp_path / "model", custom_text=True)
    pixels, token_ids = pixels_of(clip), clip.tokenize(CAPTIONS)
    once = clip.encode_image(pixels), clip.encode_text(token_ids)
    for tower in (clip.module.visual, clip.module.text):
        doubled = {"forward": lambda self, x: 2 * super(type(self), self).forward(x)}
        tower.__class__ = type("Doubled", (type(tower),), doubled)
    again = model.Clip(clip.module, clip.config, clip.directory)
    torch.testing.assert_close(again.encode_image(pixels), 2 * once[0])
    torch.testing.assert_close(again.encode_text(token_ids), 2 * once[1])
