"""pipeline_lib.model: open_clip's own features, kept through moves, cuts and saves; what was changed is refused."""

import io
import json
import os
import resource
import shutil
import socket
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from pipeline_lib import model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from tests.tiny_model import (
    COCA,
    custom_clip,
    write_tiny_clip,
    write_tiny_hf_clip,
    write_tiny_joined,
    write_tiny_timm_clip,
)

CAPTIONS = ["a cat", "two dogs on a green hill", "the red house near the river", ""]
MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tiny_hf(tmp_path_factory):
    return write_tiny_hf_clip(tmp_path_factory.mktemp("tiny_hf") / "model")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (*size[::-1], channels) if channels > 1 else size[::-1]
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8) * 255).convert("1")
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).quantize(32)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def pixels_of(clip: model.Clip, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *clip.image_size), dtype=torch.uint8, generator=generator)


# Loading


def test_features_are_those_of_plain_open_clip(tiny):
    """The two-line loading of a user without this project gives the same features, of bitwise the same input."""
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny}")
    plain.eval()
    clip = model.load(tiny)
    image = noise("RGB", (50, 40))
    expected = plain.encode_image(transform(image)[None])
    pixels = torch.from_numpy(clip.decode(encoded(image), MAX_PIXELS))[None]
    assert torch.equal(clip.module.encode_image(clip.normalize(pixels)), expected)
    torch.testing.assert_close(clip.encode_image(pixels), expected, rtol=1e-5, atol=1e-6)
    token_ids = open_clip.get_tokenizer(f"local-dir:{tiny}")(CAPTIONS)
    assert torch.equal(clip.tokenize(CAPTIONS), token_ids)
    assert torch.equal(clip.module.encode_text(token_ids), plain.encode_text(token_ids))
    assert clip.logit_scale == plain.logit_scale.exp()


def test_loaded_for_refinement(tiny):
    """Eval mode (no dropout, frozen statistics) with gradients on, in the asked type, gradients reaching the scale."""
    clip = model.load(tiny, dtype=torch.float64)
    assert not clip.module.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in clip.module.parameters())
    loss = (clip.encode_image(pixels_of(clip)) @ clip.encode_text(clip.tokenize(["a"])).T).sum() * clip.logit_scale
    loss.backward()
    assert loss.dtype == torch.float64
    assert all(p.grad is not None for p in clip.module.parameters())
    assert (clip.embed_dim, clip.context_length, clip.image_size, clip.logit_bias) == (16, 77, (32, 32), None)


@pytest.mark.parametrize("kind", ["native", "hugging_face"])
def test_a_moved_copy_loads_from_anywhere_without_network(kind, tmp_path, monkeypatch, no_network, tiny, tiny_hf):
    source = tiny if kind == "native" else tiny_hf
    before = model.load(source)
    moved = shutil.copytree(source, tmp_path / "some where" / "else")
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    clip = model.load(Path(os.path.relpath(moved)))
    token_ids = clip.tokenize(["a photo of a red bird"])
    assert torch.equal(token_ids, before.tokenize(["a photo of a red bird"]))
    assert torch.equal(clip.encode_text(token_ids), before.encode_text(token_ids))
    assert clip.facts == before.facts


def test_quick_gelu_is_kept_and_counts(tmp_path, tiny):
    """The same weights with the other activation are another model, and the facts say so."""
    quick = write_tiny_clip(tmp_path / "quick", quick_gelu=True)
    a, b = model.load(tiny), model.load(quick)
    assert a.facts["weights_digest"] == b.facts["weights_digest"]
    assert (a.facts["quick_gelu"], b.facts["quick_gelu"]) == (False, True)
    assert a.facts["config_digest"] != b.facts["config_digest"]
    difference = a.encode_image(pixels_of(a)) - b.encode_image(pixels_of(b))
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d), "no open_clip_config.json"),
        (lambda d: (d / model.WEIGHTS).unlink(), "no open_clip_config.json and weights"),
        (lambda d: (d / model.CONFIG).write_text("{"), "not valid JSON"),
        (lambda d: (d / model.CONFIG).write_text('{"model_cfg": {"embed_dim": 3}}'), "no `model_cfg`"),
        (lambda d: (d / model.CONFIG).write_text('{"model_cfg": 3}'), "no `model_cfg`"),
        (lambda d: (d / model.WEIGHTS).write_bytes((d / model.WEIGHTS).read_bytes()[:-8]), "does not load"),
        (lambda d: save_file({"logit_scale": torch.ones(())}, d / model.WEIGHTS), "Missing key"),
        (lambda d: (d / model.WEIGHTS).rename(d / "model.pth"), "does not load"),
    ],
)
def test_a_broken_directory_gets_one_sentence(spoil, message, tmp_path, tiny):
    directory = shutil.copytree(tiny, tmp_path / "model")
    spoil(directory)
    with pytest.raises(UserError, match=message) as caught:
        model.load(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_tower_without_its_config_is_refused(tmp_path, tiny_hf):
    directory = shutil.copytree(tiny_hf, tmp_path / "model")
    (directory / model.TOWER_CONFIG).unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        model.load(directory)


# Guards: a directory is the model that its manifest describes


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def other_weights(directory: Path) -> None:
    tensors = load_file(directory / model.WEIGHTS)
    tensors["logit_scale"] += 1e-6
    save_file(tensors, directory / model.WEIGHTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: edit(d / model.CONFIG, lambda c: c["model_cfg"].update(quick_gelu=True)), "quick_gelu is true"),
        (lambda d: edit(d / model.CONFIG, lambda c: c["preprocess_cfg"].update(mean=[0.5] * 3)), "preprocess is"),
        (lambda d: edit(d / model.CONFIG, lambda c: c["preprocess_cfg"].update(resize_mode="squash")), "preprocess is"),
        (lambda d: edit(d / "tokenizer.json", lambda c: c["model"]["vocab"].update(cat=10, dog=9)), "tokenizer_digest"),
        (lambda d: edit(d / model.TOWER_CONFIG, lambda c: c.update(hidden_act="relu")), "config_digest"),
        (other_weights, "weights_digest"),
    ],
)
def test_a_directory_that_was_changed_after_it_was_written_is_refused(change, named, tmp_path, tiny_hf):
    """Preprocessing, activation, tokenizer, tower and weights each have a guard; the message says which differs."""
    directory = shutil.copytree(tiny_hf, tmp_path / "model")
    facts = model.load(directory).facts
    artifacts.write_manifest(directory, "base", model={**facts, "license": "none"})
    assert model.load(directory).facts == {**facts, "license": "none"}
    change(directory)
    if named.startswith("quick_gelu"):  # neither tower of this model is open_clip's own: the flag changes no layer
        named = "config_digest"
    with pytest.raises(UserError, match=named):
        model.load(directory)
    assert model.load(directory, verify=False).facts["license"] == "none"


def test_a_flipped_activation_is_refused(tmp_path):
    directory = write_tiny_clip(tmp_path / "model", quick_gelu=True)
    artifacts.write_manifest(directory, "base", model=model.load(directory).facts)
    edit(directory / model.CONFIG, lambda c: c["model_cfg"].pop("quick_gelu"))
    with pytest.raises(UserError, match="quick_gelu is false, recorded true"):
        model.load(directory)


# Texts


@pytest.mark.parametrize("length", [1, 9, 10, 11, 21, 22, 23, 24, 25, 40])
def test_a_text_is_truncated_where_its_own_tokens_exceed_the_context(length, tiny_hf, tmp_path):
    """Against the tokens counted without any limit, by open_clip's tokenizer and a Hugging Face one."""
    plain, hugging = model.load(write_tiny_clip(tmp_path / "plain", context_length=24)), model.load(tiny_hf)
    texts = ["cat " * length, "cat " * (length - 1) + "!?", "!" * 3 * length, ""]
    for clip, count in (
        (plain, lambda text: len(plain.tokenizer.encode(text)) + 2),
        (hugging, lambda text: len(hugging.tokenizer.tokenizer(hugging.tokenizer.clean_fn(text)).input_ids)),
    ):
        found = clip.truncated(texts, clip.tokenize(texts))
        assert clip.context_length == 24
        assert found.tolist() == [count(text) > 24 for text in texts]


class Tokenizer:
    """Pads as other tokenizers do: in front, before a last token (CLIPS), with the token that ends a text (SigLIP)."""

    def __init__(self, style):
        self.style = style

    def __call__(self, texts, context_length):
        start = [] if self.style == "siglip" else [5]
        return torch.tensor([self.ids([*start, *map(len, text.split())], context_length) for text in texts])

    def ids(self, own, length):
        if self.style == "clips":
            own = [*own[: length - 2], 2]
            return own + [0] * (length - 1 - len(own)) + [9]
        own = [*own[: length - 1], 1 if self.style == "siglip" else 2]
        padding = [1 if self.style == "siglip" else 0] * (length - len(own))
        return padding + own if self.style == "front" else own + padding


@pytest.mark.parametrize("style", ["front", "clips", "siglip", "behind"])
def test_truncation_is_seen_however_a_tokenizer_pads(style, tiny):
    clip = model.load(tiny)
    clip.context_length, clip.tokenizer = 8, Tokenizer(style)
    room = {"clips": 5, "siglip": 7}.get(style, 6)  # beside start, end and a last token
    texts = ["xxx " * number for number in range(12)] + ["xxx " * (number - 1) + "yyyy" for number in range(1, 12)]
    expected = [len(text.split()) > room for text in texts]
    assert clip.truncated(texts, clip.tokenize(texts)).tolist() == expected


# Pixels


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "transparent palette", "lying", "animated", "16 bits"]
)
def test_decode_and_normalize_equal_the_transform_bitwise(mode, resize_mode, tmp_path, tiny):
    """Both halves together give what open_clip's own transform gives on the same file, whatever its mode.

    So a photo lies as it is stored and of an animation the first frame counts. Of 16 bits, where the transform gives
    white, it is what it gives on the same image in 8 bits.
    """
    directory = shutil.copytree(tiny, tmp_path / "model")
    edit(directory / model.CONFIG, lambda c: c["preprocess_cfg"].update(resize_mode=resize_mode, fill_color=7))
    clip = model.load(directory)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    for size in ((61, 40), (20, 33), (32, 32)):
        if mode == "transparent palette":
            data = encoded(noise("P", size), transparency=3)
        elif mode == "lying":
            data = encoded(noise("RGB", size), "JPEG", exif=TURNED)
        elif mode == "animated":
            data = encoded(noise("P", size), "GIF", save_all=True, append_images=[noise("P", size, seed=1)])
        elif mode == "16 bits":
            data = encoded(Image.fromarray(np.asarray(noise("L", size)).astype(np.uint16) * 257))
        else:
            data = encoded(noise(mode, size), "JPEG" if mode == "CMYK" else "PNG")
        with Image.open(io.BytesIO(data)) as image:
            expected = transform(noise("L", size) if mode == "16 bits" else image)
        pixels = clip.decode(data, MAX_PIXELS)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, 32, 32)
        assert torch.equal(clip.normalize(torch.from_numpy(pixels)[None])[0], expected)


def test_every_pixel_value_is_normalized_bitwise(tiny):
    clip = model.load(tiny)
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3, 4, 1)
    plain = open_clip.transform.image_transform(32, is_train=False, mean=clip.mean, std=clip.std).transforms[-2:]
    expected = plain[1](plain[0](Image.fromarray(ramp.permute(1, 2, 0).numpy())))
    assert torch.equal(clip.normalize(ramp[None])[0], expected)
    assert torch.equal(model.load(tiny, dtype=torch.float64).normalize(ramp[None])[0], expected.double())


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_only_batches_of_bytes_are_normalized(bad, tiny):
    """A float image would be divided by 255 a second time."""
    with pytest.raises(ValueError, match="expected uint8"):
        model.load(tiny).normalize(bad)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be decoded"),
        (b"not an image", "cannot be decoded"),
        (encoded(noise("RGB", (200, 200)))[:-3000], "cannot be decoded"),
        (encoded(noise("RGB", (200, 200)), "JPEG")[:2000], "cannot be decoded: .*truncated"),
        (encoded(Image.new("1", (1100, 1000))), "pixels are too many"),
        (encoded(Image.new("1", (3000, 1000))), "cannot be decoded: .*decompression bomb"),
        (encoded(Image.new("1", (2, 5000))), "too many .*after resizing"),  # resized to 32 x 80000
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_cannot_be_used_says_why(data, reason, tiny):
    with pytest.raises(ValueError, match=reason):
        model.load(tiny).decode(data, MAX_PIXELS)


def test_decoding_is_fit_for_other_processes(tiny):
    """`Preprocess` goes to workers without the weights."""
    import pickle

    clip = model.load(tiny)
    data = encoded(noise("RGB", (40, 40)))
    copy = pickle.loads(pickle.dumps(clip.preprocess))
    assert np.array_equal(copy.decode(data, MAX_PIXELS), clip.decode(data, MAX_PIXELS))


# Cut texts


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quick_gelu": True},
        {"custom_text": True},
        {"text": {"proj_bias": True}},
        {"text": {"proj_type": "none", "width": 16}},
        {"text": {"pool_type": "eos", "eos_id": 49407}},
        {"custom_text": True, "text": {"pool_type": "eos", "eos_id": 49407}},
        {"text": {"qk_norm": True, "scale_attn": True, "ls_init_value": 0.1}},
    ],
)
def test_cut_texts_give_the_same_features(config, tmp_path):
    """Causal attention, pooled at the end of the text: what stands behind cannot matter. Features and gradients."""
    clip = custom_clip(tmp_path / "model", **config)
    token_ids = clip.tokenize(CAPTIONS)
    assert clip.text_cut_refusal is None
    assert clip.text_lengths(token_ids).tolist() == [4, 8, 8, 2]
    full = clip.module.encode_text(token_ids, normalize=False)
    weight = clip.text_tower.token_embedding.weight
    gradient = torch.autograd.grad(full.pow(2).sum(), weight)[0]
    for length in (8, 16, 76, 77):
        cut = clip.encode_text(token_ids[:, :length])
        torch.testing.assert_close(cut, full, rtol=1e-12, atol=1e-12)
        cut_gradient = torch.autograd.grad(cut.pow(2).sum(), weight)[0]
        torch.testing.assert_close(cut_gradient, gradient, rtol=1e-10, atol=1e-10)
    assert clip.encode_text(token_ids[:, :7])[1].sub(full[1]).abs().max() > 1e-3  # the length is the shortest possible


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"custom_text": True, "text": {"no_causal_mask": True}}, "not causal"),
        ({"custom_text": True, "text": {"no_causal_mask": True, "pool_type": "last"}}, "not causal"),
        ({"text": {"pool_type": "last"}}, "pooling `last`"),
        ({"text": {"pool_type": "first"}}, "pooling `first`"),
        (COCA, "class token"),
    ],
)
def test_cutting_is_refused_where_padding_counts(config, reason, tmp_path):
    """SigLIP-like, last-token and CoCa towers: cutting there is refused, and lengths are the full ones."""
    clip = custom_clip(tmp_path / "model", **config)
    token_ids = clip.tokenize(CAPTIONS)
    assert reason in clip.text_cut_refusal
    assert clip.text_lengths(token_ids).tolist() == [77] * 4
    with pytest.raises(ValueError, match=reason):
        clip.encode_text(token_ids[:, :16])
    assert clip.encode_text(token_ids).shape == (4, 16)


@pytest.mark.parametrize(
    "config", [{"custom_text": True, "text": {"no_causal_mask": True}}, COCA, {"text": {"pool_type": "last"}}]
)
def test_where_cutting_is_refused_it_would_change_the_features(config, tmp_path):
    """The refusals are needed: the towers themselves, run on cut ids, answer something else."""
    clip = custom_clip(tmp_path / "model", **config)
    token_ids = clip.tokenize(CAPTIONS)
    full = clip.encode_text(token_ids)
    if clip.text_tower is clip.module:  # open_clip.CLIP takes no cut ids itself
        clip.module.positional_embedding = torch.nn.Parameter(clip.module.positional_embedding[:16])
        clip.module.attn_mask = clip.module.attn_mask[:16, :16]
    cut = clip.module.encode_text(token_ids[:, :16], normalize=False)
    assert (cut - full).norm() / full.norm() > 1e-3


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "mt5"])
def test_hugging_face_towers_ignore_padding(model_type, pooler, tmp_path):
    clip = model.load(write_tiny_hf_clip(tmp_path / "model", model_type=model_type, pooler=pooler), dtype=torch.float64)
    assert clip.text_cut_refusal is None
    token_ids = clip.tokenize(["a cat", "the red bird near the blue house", ""])
    assert clip.text_lengths(token_ids).tolist() == [4, 9, 2]
    full = clip.encode_text(token_ids)
    for length in (9, 16):
        torch.testing.assert_close(clip.encode_text(token_ids[:, :length]), full, rtol=1e-12, atol=1e-12)


def test_whole_ids_need_no_tokenizer(tiny_hf, monkeypatch):
    """What is cached is embedded where the tokenizer's package is not there, too."""
    clip = model.load(tiny_hf)
    token_ids = clip.tokenize(CAPTIONS)
    again = model.load(tiny_hf)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_: pytest.fail("a tokenizer was asked for"))
    assert torch.equal(again.encode_text(token_ids), clip.encode_text(token_ids))


def test_unknown_hugging_face_towers_are_not_cut(tmp_path, tiny_hf, monkeypatch):
    def refusal(change):
        clip = model.load(tiny_hf)
        change(clip)
        return clip.text_cut_refusal

    text = lambda clip: clip.module.text  # noqa: E731
    assert "not known" in refusal(lambda c: setattr(text(c).config, "model_type", "gpt_neo"))
    assert "not known" in refusal(lambda c: setattr(text(c), "pooler", torch.nn.Identity()))
    assert "right" in refusal(lambda c: setattr(c.tokenizer.tokenizer, "padding_side", "left"))
    assert "right" in refusal(lambda c: setattr(text(c).config, "pad_token_id", 3))
    assert "after the padding" in refusal(lambda c: setattr(c.tokenizer, "tokenizer_mode", "clips"))


def test_ids_that_are_too_long_are_refused(tiny):
    clip = model.load(tiny)
    with pytest.raises(ValueError, match="78 tokens, the model takes 77"):
        clip.encode_text(torch.zeros(1, 78, dtype=torch.int64))


def test_no_texts(tiny):
    clip = model.load(tiny)
    assert clip.tokenize([]).shape == (0, 77)
    assert clip.text_lengths(clip.tokenize([])).shape == (0,)


# Saving


@pytest.mark.parametrize("kind", ["native", "hugging_face"])
def test_saved_and_loaded_again(kind, tmp_path, tiny, tiny_hf):
    clip = model.load(tiny if kind == "native" else tiny_hf)
    with torch.no_grad():
        clip.module.logit_scale.add_(0.5)
    model.save(clip, tmp_path / "saved")
    again = model.load(tmp_path / "saved")
    assert again.facts == {
        **model.compute_facts(clip),
        "weights_digest": model.weights_digest(clip.module.state_dict()),
    }
    token_ids = clip.tokenize(["a red bird"])
    assert torch.equal(again.encode_text(token_ids), clip.encode_text(token_ids))
    assert torch.equal(again.encode_image(pixels_of(clip)), clip.encode_image(pixels_of(clip)))
    assert again.logit_scale == clip.logit_scale
    if kind == "native":
        plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
        assert torch.equal(plain.eval().encode_text(token_ids), clip.module.encode_text(token_ids))


@pytest.mark.parametrize("write", [write_tiny_clip, write_tiny_timm_clip, write_tiny_hf_clip, write_tiny_joined])
def test_nothing_is_left_of_the_memory_that_loading_does_not_initialise(write, tmp_path):
    """New memory holds NaN here (torch's deterministic mode fills it); after loading, no weight and no buffer does."""
    folder = write(tmp_path / "model")
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        module = model.load(folder).module
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert len(tensors) > 5
    assert [name for name, tensor in tensors.items() if tensor.isnan().any()] == []


def test_saving_is_a_function_of_the_weights(tmp_path, tiny):
    clip = model.load(tiny)
    model.save(clip, tmp_path / "a")
    model.save(clip, tmp_path / "b")
    assert (tmp_path / "a" / model.WEIGHTS).read_bytes() == (tmp_path / "b" / model.WEIGHTS).read_bytes()


def test_tied_and_strided_weights_are_written_whole(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    row = weight[1]  # a view of a larger storage
    model.save_weights({"a": weight, "tied": weight, "strided": weight.T, "row": row}, tmp_path / "w.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    found = load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["tied"], weight)
    assert torch.equal(found["strided"], weight.T)
    assert torch.equal(found["row"], row)


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for the disk; the message names the file and no library internals."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '.*w\.safetensors'$"):
            model.save_weights({"a": torch.ones(1 << 20)}, tmp_path / "w.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_weights_digest_sees_names_types_shapes_and_bytes():
    base = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.tensor(1.0)},
        {"a": -torch.zeros(2, 3), "b": torch.tensor(1.0)},
        {"c": torch.zeros(2, 3), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16)},
    ]
    digests = {model.weights_digest(each) for each in [base, *others]}
    assert len(digests) == 7
    reordered = {"b": torch.tensor(1.0), "a": torch.zeros(3, 2).T.requires_grad_()}
    assert model.weights_digest(reordered) == model.weights_digest(base)


# Weights from elsewhere


def test_weights_that_do_not_fit_are_named(tiny, tmp_path):
    clip = model.create(tiny)
    whole = load_file(tiny / model.WEIGHTS)
    model.load_weights(clip, whole, "it")
    assert model.weights_digest(clip.module.state_dict()) == model.weights_digest(whole)
    del whole["visual.proj"]
    whole |= {"extra.a": torch.ones(1), "logit_scale": torch.ones(1)}  # the scale may have another rank
    whole["positional_embedding"] = torch.zeros(50, 32)  # open_clip would interpolate it: another model
    with pytest.raises(UserError) as caught:
        model.load_weights(clip, whole, "weights.pt")
    assert str(caught.value) == (
        "weights.pt: does not fit the architecture: 1 missing (visual.proj); 1 unexpected (extra.a); "
        "1 of another shape (positional_embedding [50, 32] instead of [77, 32])"
    )


def test_older_names_of_a_separate_text_tower_are_accepted(tmp_path, tiny):
    """Checkpoints from before open_clip's CustomTextCLIP keep the text tower's tensors at the top."""
    clip = custom_clip(tmp_path / "model", custom_text=True)
    model.load_weights(clip, load_file(tiny / model.WEIGHTS), "it")
    plain = model.load(tiny, dtype=torch.float64)
    token_ids = plain.tokenize(CAPTIONS)
    torch.testing.assert_close(clip.encode_text(token_ids), plain.encode_text(token_ids), rtol=1e-12, atol=1e-12)


def test_projections_are_found_by_name(tiny, tiny_hf):
    assert sorted(model.projection_names(model.load(tiny))) == ["text_projection", "visual.proj"]
    assert sorted(model.projection_names(model.load(tiny_hf))) == ["text.proj.weight", "visual.proj"]


def test_the_standard_vocabulary_and_templates():
    vocabulary = model.standard_vocabulary()
    assert (len(vocabulary), vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49408, 49406, 49407)
    templates = model.imagenet_templates()
    assert len(templates) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert "a photo of a {}." in templates
