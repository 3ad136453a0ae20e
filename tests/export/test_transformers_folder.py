"""A folder for transformers: its own model, processor and tokenizer give what open_clip gives, or it is refused."""

import html
import io
import json
import re
import types

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline_lib import model
from pipeline_lib.base import hugging_face
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import __main__ as command
from pipeline_lib.export import transformers_folder
from pipeline_lib.export.served_model import ServedClip
from tests.base.made import hugging_face_model, siglip_model
from tests.conftest import run_stage
from tests.export.evaluated import inside, make_evaluated
from tests.model.test_big_vision import DEPTH, HEADS, WIDTH, vit_test_siglip
from tests.tiny_model import tiny_config, write_tiny_clip, write_tiny_hf_clip, write_tiny_timm_clip

transformers = pytest.importorskip("transformers")

TEXTS = ["a red circle", "Two SQUARES on white, it's 3 o'clock", "", "word " * 100, "naïve 東京 🐕"]


def photo(size=(40, 48)):
    return Image.linear_gradient("L").resize(size).convert("RGB")


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def their_features(folder, images, texts, kind="CLIP", **more):
    """Features and logits by transformers' public classes alone, as the card says."""
    read = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    processor = getattr(transformers, f"{kind}Processor").from_pretrained(folder, backend="pil")
    inputs = processor(images=images, text=texts, padding="max_length", truncation=True, **more, return_tensors="pt")
    with torch.no_grad():
        found = read(**inputs)
    return found.image_embeds, found.text_embeds, found.logits_per_image


def our_features(folder, images, texts):
    """The same by plain open_clip."""
    read, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        image = read.eval().encode_image(torch.stack([preprocess(each) for each in images]), normalize=True)
        text = read.encode_text(tokenizer(texts), normalize=True)
        return image, text, read.logit_scale.exp() * image @ text.T


def assert_same(found, expected, limit=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert ((one - other).norm() / other.norm()).item() < limit


# Native models of open_clip


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {}),
        ({"quick_gelu": True}, {}),
        ({"embed_dim": 24, "context_length": 20, "mlp_ratio": 3.0, "norm_kwargs": {"eps": 1e-3}}, {}),
        ({"pool_type": "eos", "eos_id": 49407}, {"custom_text": True}),
        ({"act_kwargs": {"approximate": "tanh"}}, {"init_logit_scale": 3.0, "nonscalar_logit_scale": True}),
    ],
)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_transformers_gives_the_features_and_logits_of_open_clip(options, more, mode, tmp_path):
    """Activation, pooling, norms, sizes, scale and both ways to the model's input, by each library alone."""
    config = tiny_config(**options)
    config["model_cfg"] |= more
    config["preprocess_cfg"] |= {"resize_mode": mode, "mean": [0.5, 0.4, 0.3], "interpolation": "bilinear"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / model.CONFIG).write_text(json.dumps(config))
    torch.manual_seed(3)
    clip = model.create(tmp_path / "own")
    with torch.no_grad():
        for parameter in clip.module.parameters():  # away from values at which a wrong mapping could hide
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save(clip, tmp_path / "own")
    (tmp_path / "theirs").mkdir()
    transformers_folder.write_model(clip, tmp_path / "theirs")
    assert transformers_folder.check_model(clip, tmp_path / "theirs") < 1e-5
    images = [photo(), photo((64, 32)), photo((20, 20))]
    expected = our_features(tmp_path / "own", images, TEXTS)
    assert_same(their_features(tmp_path / "theirs", images, TEXTS), expected)


def test_the_tokenizer_is_openai_s_by_vocabulary_alone_too(tmp_path):
    """Another reader may take vocab.json and merges.txt in place of tokenizer.json."""
    transformers_folder.write_model(model.load(write_tiny_clip(tmp_path / "own")), tmp_path)
    whole = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    parts = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert whole(TEXTS)["input_ids"] == parts(TEXTS)["input_ids"]
    assert whole.model_max_length == 77
    assert whole("a cat")["input_ids"] == [49406, 320, 2368, 49407]


def spoil_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"] *= 1.01
    model.save_weights(tensors, folder / "model.safetensors")


def edit(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, r"image features would differ by 0\.0"),
        (edit("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), "image of mode RGB would differ"),
        (lambda folder: (folder / "merges.txt").write_text("#version: 0.2\n"), None),
        (edit("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", eos_token="a</w>"), None),
    ],
)
def test_what_was_written_otherwise_is_seen(spoil, message, tmp_path):
    clip = model.load(write_tiny_clip(tmp_path / "own"))
    transformers_folder.write_model(clip, tmp_path)
    spoil(tmp_path)
    if message is None:
        transformers_folder.check_model(clip, tmp_path)  # tokenizer.json decides alone
        return
    with pytest.raises(UserError, match=f"{message}.*nothing was written; use `python -m pipeline_lib.export hub`"):
        transformers_folder.check_model(clip, tmp_path)


def test_a_tensor_that_transformers_does_not_take_is_an_error(tmp_path):
    clip = model.load(write_tiny_clip(tmp_path / "own"))
    transformers_folder.write_model(clip, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_projection.weight"]
    model.save_weights(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"not read whole.*text_projection"):
        transformers_folder.check_model(clip, tmp_path)


# What a CLIPModel cannot hold


def changed(tmp_path, text=None, vision=None, preprocess=None, **more):
    config = tiny_config(**(text or {}))
    config["model_cfg"] |= more
    config["model_cfg"]["vision_cfg"] |= vision or {}
    config["preprocess_cfg"] |= preprocess or {}
    (tmp_path / model.CONFIG).write_text(json.dumps(config))
    return model.create(tmp_path)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda d: model.load(write_tiny_timm_clip(d / "m")), "the image tower, one of timm's"),
        (lambda d: model.load(write_tiny_hf_clip(d / "m")), "the text tower, transformers' BertModel"),
        (lambda d: changed(d, init_logit_bias=-10), "the logit bias"),  # SigLIP's, whose towers are timm's besides
        (
            lambda d: changed(d, {"no_causal_mask": True}, custom_text=True),
            "the text tower: the attention is not causal",
        ),
        (lambda d: changed(d, {"pool_type": "last"}), "the text tower: pooling `last`"),
        (lambda d: changed(d, {"proj_bias": True}, custom_text=True), "the text tower's head"),
        (lambda d: changed(d, {"embed_cls": True}, custom_text=True), "the text tower: a class token"),
        (lambda d: changed(d, {"ls_init_value": 0.1}), "the tensor `transformer.resblocks.0.ls_1.gamma`"),
        (lambda d: changed(d, vision={"ls_init_value": 0.1}), "the tensor `visual.transformer.resblocks.0.ls_1.gamma`"),
        (lambda d: changed(d, vision={"no_ln_pre": True}), "the image tower without its first layer norm"),
        (lambda d: changed(d, vision={"pool_type": "avg"}), "the image tower's pooling"),
        (lambda d: changed(d, vision={"attentional_pool": True}), "the image tower's pooling"),
        (lambda d: changed(d, vision={"image_size": [32, 64]}), "the image tower's input of 32 × 64"),
        (lambda d: changed(d, vision={"layers": [1, 1, 1, 1]}), "the image tower, a ModifiedResNet"),
        (
            lambda d: changed(d, vision={"qk_norm": True}),
            "the image tower's layers of kind CustomResidualAttentionBlock",
        ),
        (lambda d: changed(d, preprocess={"resize_mode": "longest"}), r"the preprocessing .*32 × 32, longest, bicubic"),
    ],
)
def test_what_a_clip_model_cannot_hold_is_refused_by_its_part(make, part, tmp_path):
    with pytest.raises(UserError, match=rf"a CLIPModel cannot hold {part}.*export hub`, whose card") as caught:
        transformers_folder.write_model(make(tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


# From transformers through the pipeline and back


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A made CLIPModel with OpenAI's tokenizer and an image processor of its own."""
    folder = tmp_path_factory.mktemp("original") / "hf"
    theirs = hugging_face_model(folder)
    merges = model.standard_merges()
    transformers.CLIPTokenizer(vocab=model.standard_vocabulary(), merges=merges).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    settings = {"size": {"shortest_edge": 32}, "crop_size": square, "image_std": [0.4, 0.5, 0.6], "resample": 2}
    transformers.CLIPImageProcessorPil(**settings).save_pretrained(folder)
    return theirs, folder


@pytest.fixture(scope="module")
def evaluated(original, tmp_path_factory):
    project = tmp_path_factory.mktemp("round") / "project"
    return make_evaluated(project, model=original[1], base__source="checkpoint")


def test_a_clip_model_comes_back_from_the_pipeline(original, evaluated, tmp_path, capsys):
    """The base bit by bit; the refined one with open_clip's features, pixels and ids, and other weights."""
    with inside(evaluated):
        command.main(["transformers", "--to", str(tmp_path / "base"), "--model", "base"])
        command.main(["transformers", "--to", str(tmp_path / "refined"), "--repository", "me/mine"])
        clip = model.load(evaluated / "data/refined")
    assert "read back by transformers, largest relative difference of features" in capsys.readouterr().out
    theirs, folder = original
    written = load_file(tmp_path / "base/model.safetensors")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "base").model_max_length == 77
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in theirs.state_dict().items())
    images, texts = [photo(), photo((57, 33))], [*TEXTS, "salt &amp; “pepper” ﬁne <|endoftext|> x"]
    found = their_features(tmp_path / "base", images, texts)
    assert all(map(torch.equal, found, their_features(folder, images, texts, max_length=77)))
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(clip.decode(png(image), 10**6)) for image in images])
        image, text = (
            torch.nn.functional.normalize(each, dim=-1)
            for each in (clip.encode_image(pixels), clip.encode_text(clip.tokenize(texts)))
        )
    expected = image, text, clip.logit_scale * image @ text.T
    assert_same(their_features(tmp_path / "refined", images, texts), expected)
    assert not torch.equal(load_file(tmp_path / "refined/model.safetensors")["visual_projection.weight"],
                           written["visual_projection.weight"])  # fmt: skip
    assert artifacts.verify(tmp_path / "refined") == []
    card = (tmp_path / "refined/README.md").read_text()
    assert "library_name: transformers" in card
    assert 'CLIPModel.from_pretrained("me/mine")' in card


def test_captions_that_the_other_tokenizer_reads_otherwise_are_counted_and_shown(tmp_path, capsys):
    """open_clip mends HTML entities first; transformers reads them as they are."""
    project = make_evaluated(tmp_path / "project", num_samples=24)
    captions = project / "set/captions.jsonl"
    captions.write_text(captions.read_text().replace(" in ", " &amp; "))
    for stage in ("shard", "cache_teacher", "refine", "evaluate"):
        run_stage(stage, project)
    with inside(project):
        command.main(["transformers", "--to", str(tmp_path / "out")])
    said = capsys.readouterr().out
    found = artifacts.read_manifest(tmp_path / "out")
    assert 0 < found["other_captions"] < found["captions"]
    line = f"tokens:  {found['other_captions']} of {found['captions']} captions get other token ids there, such as "
    shown = said.split(line)[1].split("'")[1]
    assert html.unescape(shown) != shown


# SigLIP


def write_siglip(folder, *, clean=None, **changes):
    """A model of SigLIP's architecture in open_clip's words, with a tokenizer of its own; `changes` to its text_cfg.

    With `clean` it is as open_clip publishes them: it cleans texts itself, and its image tower has a name in timm.
    """
    source = folder.with_name("source")
    named = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH}
    named |= {"patch_size": 16, "intermediate_size": 4 * WIDTH, "hidden_act": "gelu"}
    siglip_model(source, **({"vision": named, "text": {"projection_size": WIDTH}} if clean else {}))
    converted = hugging_face.read_folder(source)
    config = converted.model_config
    config["text_cfg"] |= {"hf_tokenizer_name": "nobody/tokens", **changes}
    model.copy_files(source, folder)
    (folder / model.TOWER_CONFIG).unlink()
    if clean:
        config["vision_cfg"]["timm_model_name"] = vit_test_siglip.__name__
        config["text_cfg"]["tokenizer_kwargs"] = {"clean": clean}
        bare = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": None}
        (folder / "tokenizer.json").write_text(json.dumps(bare))
        converted.preprocess.pop("conventions")
    else:
        artifacts.write_json(folder / model.TOWER_CONFIG, converted.image_tower)
    model.write_config(folder, config, converted.preprocess)
    clip = model.create(folder)
    model.load_weights(clip, converted.tensors, "made")
    return clip


def test_open_clip_s_cleaning_of_texts_goes_into_the_tokenizer(tmp_path):
    """Lower case, punctuation and spaces, before a tokenizer that knows none of it; other cleaning is refused."""
    for name in ("own", "theirs", "lower"):
        (tmp_path / name).mkdir()
    clip = write_siglip(tmp_path / "own", clean="canonicalize")
    transformers_folder.write_model(clip, tmp_path / "theirs")
    assert transformers_folder.check_model(clip, tmp_path / "theirs") < 1e-5
    images = [photo(), photo((64, 32))]
    texts = ["A Photo_of the RIVER!", "two \t dogs, it's [a-z] \\ & ^ {} hill", "", "cat " * 40, "ÉCLAIR"]
    assert clip.tokenize(texts[:1]).tolist() != clip.tokenizer.tokenizer(texts[:1], padding="max_length")["input_ids"]
    with torch.no_grad():
        image = clip.module.encode_image(torch.stack([clip.preprocess(each) for each in images]), normalize=True)
        text = clip.module.encode_text(clip.tokenize(texts), normalize=True)
        expected = image, text, clip.logit_scale * image @ text.T + clip.logit_bias
    assert_same(their_features(tmp_path / "theirs", images, texts, "Siglip"), expected)
    clip.config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["clean"] = "lower"
    transformers_folder.write_model(clip, tmp_path / "lower")
    with pytest.raises(UserError, match=r"token ids of '.*' would differ.*nothing was written"):
        transformers_folder.check_model(clip, tmp_path / "lower")


def without_bias(clip):
    clip.module.logit_bias = None


def with_class_token(clip):
    clip.module.visual.trunk.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 48))


def with_another_norm(clip):
    clip.module.visual.trunk.blocks[0].norm1.eps = 1e-3


def with_another_activation(clip):
    clip.module.visual.trunk.attn_pool.mlp.act = torch.nn.ReLU()


@pytest.mark.parametrize(
    ("changes", "spoil", "part"),
    [
        ({"no_causal_mask": False}, None, "the text tower, which is masked or does not pool at the last token"),
        ({"pool_type": "first"}, None, "the text tower, which is masked or does not pool at the last token"),
        ({}, without_bias, "a model without 'logit_bias'"),
        ({}, with_class_token, "the tensor `visual.trunk.cls_token`"),
        ({}, with_another_norm, "the image tower's layers, which differ"),
        ({}, with_another_activation, "the image tower's layers of kind ReLU"),
    ],
)
def test_what_a_siglip_model_cannot_hold_is_refused_by_its_part(changes, spoil, part, tmp_path):
    (tmp_path / "own").mkdir()
    clip = write_siglip(tmp_path / "own", **changes)
    if spoil:
        spoil(clip)
    with pytest.raises(UserError, match=rf"a SiglipModel cannot hold {part}.*export hub`, whose card") as caught:
        transformers_folder.write_model(clip, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_siglip_model_comes_back_from_the_pipeline(tmp_path, capsys):
    """The base bit by bit; the refined one with open_clip's features; the cards' lines load both exports."""
    theirs, folder = siglip_model(tmp_path / "hf"), tmp_path / "hf"
    project = make_evaluated(tmp_path / "project", model=folder, num_samples=48, base__source="checkpoint")
    with inside(project):
        command.main(["transformers", "--to", str(tmp_path / "base"), "--model", "base"])
        command.main(["transformers", "--to", str(tmp_path / "refined"), "--repository", "me/mine"])
        command.main(["hub", "--to", str(tmp_path / "hub"), "--repository", "me/mine"])
        clip = model.load(project / "data/refined")
    assert "transformers.SiglipModel.from_pretrained" in capsys.readouterr().out
    written, refined = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "refined"))
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in theirs.state_dict().items())
    assert not torch.equal(refined["text_model.head.weight"], written["text_model.head.weight"])
    images, texts = [photo(), photo((57, 33))], [*TEXTS, "salt &amp; “pepper” ﬁne </s> x"]
    found = their_features(tmp_path / "base", images, texts, "Siglip")
    assert all(map(torch.equal, found, their_features(folder, images, texts, "Siglip")))
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(clip.decode(png(image), 10**6)) for image in images])
        raw = clip.encode_image(pixels), clip.encode_text(clip.tokenize(texts))
        image, text = (torch.nn.functional.normalize(each, dim=-1) for each in raw)
        expected = image, text, clip.logit_scale * image @ text.T + clip.logit_bias
    assert_same(their_features(tmp_path / "refined", images, texts, "Siglip"), expected)
    card = (tmp_path / "refined/README.md").read_text()
    assert 'SiglipModel.from_pretrained("me/mine")' in card
    assert "logits_per_image.sigmoid()" in card
    settings = json.loads((tmp_path / "hub" / model.CONFIG).read_text())["model_cfg"]
    assert settings["vision_cfg"]["timm_model_name"] == "hf-hub:me/mine"  # where timm finds config.json
    lines = re.search(r"From the folder `hub`.*?python\n(.*?)```", (tmp_path / "hub/README.md").read_text(), re.DOTALL)
    loaded: dict = {}
    with inside(tmp_path), torch.no_grad():
        exec(lines[1], loaded)
        found = loaded["model"].eval().encode_image(torch.stack([loaded["preprocess"](each) for each in images]))
    torch.testing.assert_close(found, raw[0], rtol=1e-5, atol=1e-5)
    served = ServedClip()
    served.load_context(types.SimpleNamespace(model_config=None, artifacts={"clip": str(project / "data/refined")}))
    with torch.no_grad():
        assert torch.equal(served.model.encode_image(clip.normalize(pixels)), raw[0])


# sentence-transformers


def test_sentence_transformers_wraps_the_folder(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    clip = model.load(write_tiny_clip(tmp_path / "own"))
    (tmp_path / "theirs").mkdir()
    transformers_folder.write_model(clip, tmp_path / "theirs")
    wrapped = library.SentenceTransformer(str(tmp_path / "theirs"), device="cpu")
    expected = our_features(tmp_path / "own", [photo((32, 32))], ["a red circle"])
    found = [
        torch.from_numpy(wrapped.encode(one, normalize_embeddings=True)) for one in (photo((32, 32)), "a red circle")
    ]
    assert_same(found, [each[0] for each in expected[:2]], limit=1e-2)  # its image processor rounds otherwise
