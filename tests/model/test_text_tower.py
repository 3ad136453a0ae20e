"""A joined model as an ordinary open_clip folder: plain open_clip gives its features, or a part is named."""

import json

import open_clip
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.model.features import row_difference
from tests.tiny_model import write_tiny_joined

TEXTS = ["a photo of a cat", "two dogs on a hill near a river", "", "a red bird " * 20]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_plain_open_clip_gives_the_features_of_the_joined_model(kind, tmp_path):
    """So does `model.load`, also after a move; special tokens are pooled with the text, and padding is not."""
    joined = model.load(write_tiny_joined(tmp_path / "joined", kind))
    assert model.foreign_text_side(joined) == ""
    model.with_text_tower(joined, tmp_path / "made")
    folder = (tmp_path / "made").rename(tmp_path / "moved")
    expected = joined.encode_text(joined.tokenize(TEXTS))
    loaded = model.load(folder)
    assert row_difference(loaded.encode_text(loaded.tokenize(TEXTS)), expected) < 1e-6
    config = json.loads((folder / model.CONFIG).read_text())["model_cfg"]["text_cfg"]
    config |= {"hf_model_name": str(folder)}
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=config)
    plain.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert row_difference(plain.encode_text(tokenizer(TEXTS)), expected) < 1e-6
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    images = joined.normalize(pixels)
    assert torch.equal(plain.encode_image(images), joined.module.encode_image(images))
    assert torch.equal(plain.logit_scale.exp(), joined.logit_scale)


def test_texts_that_open_clip_mends_are_named(tmp_path):
    joined = model.load(write_tiny_joined(tmp_path / "joined", "bert"))
    made = model.with_text_tower(joined, tmp_path / "made")
    texts = ["a cat", "a cat &amp; a dog", "a <pad> cat", "two  dogs"]
    assert model.read_otherwise(joined, made, texts) == ["a cat &amp; a dog", "a <pad> cat"]
    assert model.read_otherwise(joined, made, []) == []


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        ("llama", {}, "a language model of type `llama`"),
        ("bert", {"depth": 1}, "an adapter that is more than one matrix"),
        ("bert", {"pooling": "cls"}, "pooling `cls` with the prompt '{}'"),
        ("bert", {"prompt": "a photo of {}"}, "pooling `mean` with the prompt 'a photo of {}'"),
    ],
)
def test_what_open_clip_has_not_is_named(kind, options, part, tmp_path):
    assert model.foreign_text_side(model.load(write_tiny_joined(tmp_path / "joined", kind, **options))) == part


def test_a_tokenizer_that_truncates_on_the_left_is_named(tmp_path):
    joined = model.load(write_tiny_joined(tmp_path / "joined", "bert"))
    joined.language().tokenizer.truncation_side = "left"
    assert "truncate on the right" in model.foreign_text_side(joined)
