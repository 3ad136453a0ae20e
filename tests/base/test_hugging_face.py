"""pipeline_lib.base.hugging_face, agreement: a CLIPModel folder gives transformers' own features, or is refused."""

import gzip
import html
import io
import json
import logging
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.base import agreement
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from tests.base.made import assert_left_nothing, edit, hugging_face_model, materialise

transformers = pytest.importorskip("transformers")

SQUARE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
TEXTS = [
    "A Photo of the RIVER &amp; hill",
    "Crème brûlée ΟΔΟΣ 🐕 â€œquotedâ€\x9d",
    "",
    "word " * 100,
    "two \t\n spaces <|endoftext|> it's",
    "a photo of a <my-dog> on a hill",
]


@pytest.fixture(scope="module")
def tokenizer():
    """OpenAI's tokenizer as transformers makes it, from open_clip's copy of the merges."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    return transformers.CLIPTokenizer(vocab=model.standard_vocabulary(), merges=merges)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs") / "hf"
    return hugging_face_model(folder), folder


@pytest.fixture
def folder(theirs, tmp_path):
    """A CLIPModel folder without an image processor and a tokenizer."""
    target = tmp_path / "hf"
    target.mkdir()
    for path in theirs[1].iterdir():
        (target / path.name).symlink_to(path)
    return target


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC)
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


def image_features(clip: model.Clip, image: Image.Image) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "PNG")
    return clip.encode_image(torch.from_numpy(clip.decode(file.getvalue(), 10**6))[None])


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# Images


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.5] * 3, "image_std": [0.4, 0.5, 0.6]},
        {"image_mean": 0.5, "resample": 2},
        {"size": 32, "crop_size": 32},
        {"size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "crop_size": {"height": 9, "width": 9}},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_pad": False, "processor_class": "CLIPProcessor", "some_new_key": None},
    ],
)
def test_images_are_seen_as_transformers_sees_them(settings, folder, theirs, tokenizer, tmp_path):
    """Features on transformers' own pixels, of its default processor, for shapes with odd margins and all modes.

    Mean and deviation stand in the file that transformers 5 writes for a whole processor, processor_config.json.
    """
    processor = transformers.CLIPImageProcessor(**(SQUARE | settings))
    if "image_std" in settings:
        transformers.CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
        assert not (folder / "preprocessor_config.json").exists()
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps({**SQUARE, **settings}))
    clip = materialise(tmp_path / "base", path=str(folder))
    assert clip.facts["preprocess"]["conventions"] == "transformers"
    for size in ((300, 400), (43, 32), (32, 47), (20, 11)):
        for mode in ("RGB", "L", "RGBA", "P"):
            pixels = processor(images=photo(size, mode), return_tensors="pt")["pixel_values"].float()
            expected = theirs[0].visual_projection(theirs[0].vision_model(pixel_values=pixels).pooler_output)
            assert difference(image_features(clip, photo(size, mode)), expected) < 0.01, (size, mode)  # it rounds so


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 37}}, "size is .*37.*crop_size.*32.*; open_clip's only ways"),
        ({"crop_size": {"height": 30, "width": 32}}, "size is .*30"),
        ({"size": {"height": 32, "width": 40}}, "size is .*40"),
        ({"size": {"height": 32, "width": 32}, "crop_size": {"height": 48, "width": 48}}, "size is .*48"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size is .*64"),
        ({"do_center_crop": False}, "size is .*with do_center_crop false"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_convert_rgb": False}, "do_convert_rgb is false"),
        ({"resample": 1}, "resample is 1"),
        ({"resample": 0}, "resample is 0"),
        ({"rescale_factor": 0.0}, "rescale_factor is 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is .*three finite numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std holds 0"),
        ({"do_pad": True}, "`do_pad` is no setting"),
        ({"crop_pct": 0.875}, "`crop_pct` is no setting"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type is `ViTImageProcessor`"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "feature_extractor_type is `BeitFeatureExtractor`"),
    ],
)
def test_what_open_clip_cannot_do_to_an_image_is_refused_by_file_and_key(settings, message, folder, tmp_path):
    (folder / "preprocessor_config.json").write_text(json.dumps({**SQUARE, **settings}))
    with pytest.raises(UserError, match=f"preprocessor_config.json: {message}") as caught:
        materialise(tmp_path / "base", path=str(folder))
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


def test_a_folder_without_processor_and_tokenizer_is_taken_as_openai_s_and_says_so(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        clip = materialise(tmp_path / "base", path=str(folder))
    assert "no files of its preprocessing and tokenizer, so OpenAI's is used" in caplog.text
    assert clip.facts["source"]["assumed_of_openai"] == ["preprocessing", "tokenizer"]
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN


# Texts


def text_features(theirs, tokens) -> torch.Tensor:
    ids = tokens(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return theirs.text_projection(theirs.text_model(**ids).pooler_output)


@pytest.mark.parametrize("added", [False, True])
def test_texts_are_read_as_transformers_reads_them(added, tokenizer, tmp_path):
    """Ids and features: case, HTML entities and odd encodings as they are, empty and long texts, tokens added."""
    tokens = tokenizer
    if added:
        tokenizer.save_pretrained(tmp_path / "tokens")
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokens")
        tokens.add_tokens(["<my-dog>"])
    theirs = hugging_face_model(tmp_path / "hf", vocab_size=len(tokens))
    tokens.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    clip = materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    expected = tokens(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(clip.tokenize(TEXTS), expected)
    assert (49408 in clip.tokenize(TEXTS)) is added
    found = clip.encode_text(clip.tokenize(TEXTS))
    torch.testing.assert_close(found, text_features(theirs, tokens), rtol=1e-4, atol=1e-5)
    plain = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'base'}")  # mends texts first: the same without entities
    assert torch.equal(plain([html.unescape(TEXTS[0])]), clip.tokenize([html.unescape(TEXTS[0])]))


def test_a_tokenizer_that_changed_after_the_base_was_written_is_refused(folder, tokenizer, tmp_path):
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    clip = materialise(tmp_path / "base", path=str(folder))
    assert model.load(tmp_path / "base").facts == clip.facts
    edit(tmp_path / "base" / model.CONFIG, lambda c: c["preprocess_cfg"].pop("conventions"))
    with pytest.raises(UserError, match=r"preprocess is .*tokenizer_digest is"):
        model.load(tmp_path / "base")
    edit(tmp_path / "base" / model.CONFIG, lambda c: c["preprocess_cfg"].update(conventions="timm"))
    with pytest.raises(UserError, match="conventions `timm` are not known"):
        model.load(tmp_path / "base")


def add_a_token(folder: Path) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    tokens.add_tokens(["<my-dog>"])
    tokens.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "tokenizer.json").write_text("{}"), "its tokenizer cannot be read"),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["a.B", None]})),
            "auto_map names code",
        ),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.update(pad_token=None, tokenizer_class=None)),
            "its tokenizer has no pad_token",
        ),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.update(padding_side="left")),
            "text features would differ by",
        ),
        (add_a_token, "the tokenizer has ids up to 49408, the model 49408 rows"),
        (lambda d: (d / "tokenizer.json").rename(d / "vocab.json"), "half a tokenizer, merges.txt is missing"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(spoil, message, folder, tokenizer, tmp_path):
    tokenizer.save_pretrained(folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        materialise(tmp_path / "base", path=str(folder))
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


# The comparison can fail


def test_the_comparison_sees_other_pixels_ids_and_weights(folder, theirs, tokenizer, tmp_path):
    """A converted model spoilt in one part each is refused with the part and the difference."""
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    clip = materialise(tmp_path / "base", path=str(folder))
    processor = transformers.CLIPImageProcessorPil(**SQUARE)
    reference, read = theirs[0], agreement.read_tokenizer(folder)
    agreement.check_images(clip, processor, folder)
    agreement.check_texts(clip, read, folder)
    assert agreement.check_features(clip, reference, processor, read, folder) < 1e-5
    with pytest.raises(UserError, match="image of mode RGB would differ by"):
        agreement.check_images(clip, transformers.CLIPImageProcessorPil(**SQUARE, image_mean=[0.5] * 3), folder)
    clip.tokenizer.clean_fn = open_clip.tokenizer.get_clean_fn("whitespace")
    with pytest.raises(UserError, match=r"token ids of .* would differ by"):
        agreement.check_texts(clip, read, folder)
    clip.tokenizer.clean_fn = str
    for name, side in (("visual.proj", "image"), ("text_projection", "text")):
        weight = clip.module.state_dict()[name]
        weight.mul_(1.01)
        with pytest.raises(UserError, match=rf"{side} features would differ by 0.0\d+"):
            agreement.check_features(clip, reference, processor, read, folder)
        weight.div_(1.01)
    assert artifacts.verify(tmp_path / "base") == []
