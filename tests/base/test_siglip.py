"""pipeline_lib.base.siglip: a SiglipModel folder gives transformers' own features and logits, or is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline_lib import model
from pipeline_lib.base import agreement, kinds, processors
from pipeline_lib.core.errors import UserError
from tests.base.made import assert_left_nothing, edit, materialise, siglip_model
from tests.tiny_model import WORDS

transformers = pytest.importorskip("transformers")

TEXTS = ["A Photo of the RIVER &amp; hill!", "", "word " * 100, "two \t\n dogs, <hill> it's", "crème 🐕 東京"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs") / "hf"
    return siglip_model(folder), folder


@pytest.fixture
def folder(theirs, tmp_path):
    """A SiglipModel folder with everything that belongs to it, to be changed."""
    return shutil.copytree(theirs[1], tmp_path / "hf")


def photo(size, mode="RGB"):
    noise = np.random.default_rng(3).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC).convert(mode)


def assert_same_logits(theirs, folder, ours):
    """By the public classes of both, on images of all shapes and modes, and on texts that cleaning would change."""
    images = [photo((300, 400)), photo((43, 32), "L"), photo((20, 11), "RGBA")]
    processor = transformers.SiglipProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=images, text=TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    module, preprocess, tokenizer = model.open_folder(ours)
    with torch.no_grad():
        expected = theirs(**inputs)
        image = module.encode_image(torch.stack([preprocess(each) for each in images]), normalize=True)
        text = module.encode_text(tokenizer(TEXTS), normalize=True)
    assert torch.equal(tokenizer(TEXTS), inputs["input_ids"])
    torch.testing.assert_close(image, expected.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, expected.text_embeds, rtol=1e-5, atol=1e-5)
    found = module.logit_scale.exp() * image @ text.T + module.logit_bias
    torch.testing.assert_close(found, expected.logits_per_image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_act": "gelu"},
        {"num_hidden_layers": 1},
        {"text": {"layer_norm_eps": 1e-3, "hidden_act": "gelu"}},
        {"vision": {"image_size": 36, "patch_size": 16, "intermediate_size": 52}},  # pixels that no patch holds
    ],
)
def test_a_siglip_model_gives_transformers_features_and_logits(options, tmp_path):
    """Attention pool, last token with its head, scale and bias; the folder is read from where it was moved to."""
    theirs = siglip_model(tmp_path / "hf", **options)
    clip = materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert clip.facts["source"] == {"kind": "hugging_face", "folder": "hf"}
    shutil.move(tmp_path / "base", tmp_path / "moved")
    assert_same_logits(theirs, tmp_path / "hf", tmp_path / "moved")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_convert_rgb": None},  # as in published folders
        {"image_processor_type": "SiglipImageProcessorFast", "image_mean": [0.4, 0.5, 0.6], "resample": 2},
        {"image_processor_type": None, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
    ],
)
def test_images_are_seen_as_the_folder_s_processor_sees_them(settings, folder, tmp_path):
    edit(folder / "preprocessor_config.json", lambda c: c.update(settings))
    clip = materialise(tmp_path / "base", path=str(folder))
    kind = transformers.CLIPImageProcessorPil if "crop_size" in settings else transformers.SiglipImageProcessorPil
    given = json.loads((folder / "preprocessor_config.json").read_text())
    processor = kind.from_dict({key: value for key, value in given.items() if value is not None})
    for size in ((300, 401), (43, 32), (20, 11)):
        expected = processor(images=photo(size), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(clip.preprocess(photo(size)), expected.float(), rtol=1e-5, atol=1e-5)


def configure(side, **changes):
    return lambda d: edit(d / "config.json", lambda c: c[side].update(changes))


def reweigh(change):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (configure("vision_config", hidden_act="quick_gelu"), "hidden_act is `quick_gelu` in vision_config"),
        (configure("text_config", hidden_act="relu"), "hidden_act is `relu` in text_config"),
        (configure("vision_config", layer_norm_eps=1e-5), r"layer_norm_eps of vision_config is 1e-05; timm"),
        (configure("vision_config", vision_use_head=False), "vision_use_head is false"),
        (configure("vision_config", num_channels=1), "other than a square of three channels"),
        (configure("vision_config", image_size=[32, 48]), "other than a square of three channels"),
        (configure("vision_config", num_attention_heads=5), "no multiple of num_attention_heads|not divisible"),
        (configure("text_config", projection_size=24), "projection_size of text_config is 24, .* 48"),
        (configure("text_config", num_hidden_layers=3), "12 missing"),
        (reweigh(lambda t: t.pop("logit_bias")), "'logit_bias' is missing; not a whole SiglipModel"),
        (reweigh(lambda t: t.pop("vision_model.head.probe")), "'vision_model.head.probe' is missing; not a whole"),
        (
            reweigh(lambda t: t.update({"classifier.weight": torch.ones(2)})),
            "`classifier.weight` belongs to no part of",
        ),
        (reweigh(lambda t: t.update({"vision_model.head.attention.in_proj_bias": torch.ones(2)})), "does not fit"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "no files of its preprocessing; copy them there"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json, and its vocabulary"),
        (
            lambda d: edit(d / "preprocessor_config.json", lambda c: c.update(size={"height": 48, "width": 48})),
            "size is .*48",
        ),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.pop("model_input_names")),
            "model_input_names has attention_mask, which hides padding",
        ),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.update(model_max_length=12)),
            "model_max_length is 12, but the text tower reads 20 tokens",
        ),
        (
            lambda d: edit(d / "tokenizer_config.json", lambda c: c.update(pad_token=None)),
            "its tokenizer has no pad_token",
        ),
    ],
)
def test_what_open_clip_s_siglip_cannot_express_is_refused_by_file_and_key(spoil, message, folder, tmp_path):
    spoil(folder)
    with pytest.raises(UserError, match=f"^base.path: .*({message})") as caught:
        materialise(tmp_path / "base", path=str(folder))
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_without_its_image_tower_s_description_the_model_is_not_loaded(spoil, folder, tmp_path, monkeypatch):
    """Also where timm would find another one, in the working directory."""
    materialise(tmp_path / "base", path=str(folder))
    shutil.copyfile(tmp_path / "base" / model.TOWER_CONFIG, tmp_path / model.TOWER_CONFIG)
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "base" / model.TOWER_CONFIG)
    with pytest.raises(UserError, match=r"base/config.json: describes no image tower"):
        model.load(tmp_path / "base")


def test_weights_alone_are_refused_for_the_folder(folder, tmp_path):
    """open_clip's tags of SigLIP have another form of GELU."""
    weights = str(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"base.model `ViT-B-16-SigLIP`: .* SiglipModel.*; give the folder of both"):
        materialise(tmp_path / "base", path=weights, model="ViT-B-16-SigLIP")


def test_a_tokenizer_of_sentencepiece_as_published_folders_have_it_reads_as_transformers_does(tmp_path):
    """From the base and from the written model, whose texts are as transformers' own."""
    spm = pytest.importorskip("sentencepiece")
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentences = (" ".join(WORDS[at:] + WORDS[:at]) for at in range(len(WORDS)))
    vocabulary = {"model_prefix": str(tmp_path / "spiece"), "vocab_size": 120, "hard_vocab_limit": False}
    spm.SentencePieceTrainer.train(sentence_iterator=sentences, minloglevel=2, **vocabulary, **special)
    names = {"model_max_length": 20, "model_input_names": ["input_ids"]}  # as those of the hub are saved
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"), **names)
    theirs = siglip_model(tmp_path / "siglip", text={"vocab_size": len(tokenizer)})
    (tmp_path / "siglip/tokenizer.json").unlink()
    tokenizer.save_pretrained(tmp_path / "siglip")
    clip = materialise(tmp_path / "base", path=str(tmp_path / "siglip"))
    texts = ["A photo of a CAT!", "two dogs, on the hill.", ""]
    ids = tokenizer(texts, padding="max_length", max_length=20, truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(clip.tokenize(texts), ids)
    torch.testing.assert_close(clip.encode_text(ids), theirs.text_model(input_ids=ids).pooler_output)

    hide = "import sys; sys.modules['sentencepiece'] = None; from pathlib import Path; from pipeline_lib import model; "
    load = f"model.load(Path({str(tmp_path / 'base')!r})).tokenize(['a'])"
    done = subprocess.run([sys.executable, "-c", hide + load], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("; pip install sentencepiece")
    assert "its tokenizer cannot be read (SiglipTokenizer requires the SentencePiece library" in done.stderr


def test_the_comparison_sees_other_weights_and_another_activation(folder, theirs, tmp_path):
    """A converted model spoilt in one part each is refused with the part: also by the form of GELU alone."""
    clip = materialise(tmp_path / "base", path=str(folder))
    processor, _ = processors.read_processor(folder, 32, kinds.SIGLIP)
    tokenizer = agreement.read_tokenizer(folder)
    assert agreement.check_features(clip, theirs[0], processor, tokenizer, folder) < 1e-5
    for name, what in (
        ("visual.trunk.attn_pool.latent", "image features"),
        ("text.text_projection.bias", "text features"),
        ("logit_bias", "the logit bias"),
    ):
        weight = clip.module.state_dict()[name]
        weight.mul_(1.1)
        with pytest.raises(UserError, match=rf"{what} would differ by"):
            agreement.check_features(clip, theirs[0], processor, tokenizer, folder)
        weight.div_(1.1)
    edit(tmp_path / "base" / model.TOWER_CONFIG, lambda c: c["model_args"].update(act_layer="gelu"))
    with pytest.raises(UserError, match="config_digest"):
        model.load(tmp_path / "base")
    (tmp_path / "base/manifest.json").unlink()
    with pytest.raises(UserError, match="image features would differ by"):
        agreement.check_features(model.load(tmp_path / "base"), theirs[0], processor, tokenizer, folder)
