"""pipeline_lib.model.big_vision: SigLIP's .npz is read as open_clip reads it, whole, or refused."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm.models
import torch

from pipeline_lib import model
from pipeline_lib.core.errors import UserError
from tests.base.made import materialise
from tests.tiny_model import tiny_config

WIDTH, HEADS, DEPTH, TEXT = 64, 2, 2, 32


@timm.models.register_model
def vit_test_siglip(pretrained: bool = False, **options) -> timm.models.VisionTransformer:
    """SigLIP's image tower as timm has it, but small."""
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    name = "vit_base_patch16_siglip_224"
    return timm.models.vision_transformer._create_vision_transformer(name, **shape, class_token=False, **options)


def siglip_config() -> dict:
    """A small SigLIP in open_clip's words."""
    config = tiny_config(context_length=16)
    config["model_cfg"] |= {"embed_dim": WIDTH, "custom_text": True, "init_logit_bias": -10}
    config["model_cfg"]["vision_cfg"] = {
        "image_size": 32,
        "timm_model_name": "vit_test_siglip",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    config["model_cfg"]["text_cfg"] |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    return config


def arrays(prefix: str = "params/") -> dict[str, np.ndarray]:
    """Random numbers under the names and in the shapes in which big_vision publishes."""
    shapes: dict[str, tuple[int, ...]] = {"t": (1,), "b": (1,)}

    def layer(name: str, width: int, heads: int, hidden: int, *, norms: int = 2, attention: str = "") -> None:
        head = width // heads
        for number in range(norms):
            shapes.update({f"{name}/LayerNorm_{number}/{kind}": (width,) for kind in ("scale", "bias")})
        for part in ("query", "key", "value"):
            shapes[f"{name}/MultiHeadDotProductAttention_0/{part}/kernel"] = (width, heads, head)
            shapes[f"{name}/MultiHeadDotProductAttention_0/{part}/bias"] = (heads, head)
        shapes[f"{name}/MultiHeadDotProductAttention_0/out/kernel"] = (heads, head, width)
        shapes[f"{name}/MultiHeadDotProductAttention_0/out/bias"] = (width,)
        for number, (a, b) in enumerate(((width, hidden), (hidden, width))):
            shapes[f"{name}/MlpBlock_0/Dense_{number}/kernel"] = (a, b)
            shapes[f"{name}/MlpBlock_0/Dense_{number}/bias"] = (b,)

    shapes |= {"img/embedding/kernel": (16, 16, 3, WIDTH), "img/embedding/bias": (WIDTH,)}
    shapes |= {"img/pos_embedding": (1, 4, WIDTH), "img/MAPHead_0/probe": (1, 1, WIDTH)}
    shapes |= {f"img/Transformer/encoder_norm/{kind}": (WIDTH,) for kind in ("scale", "bias")}
    layer("img/MAPHead_0", WIDTH, HEADS, 4 * WIDTH, norms=1)
    for number in range(DEPTH):
        layer(f"img/Transformer/encoderblock_{number}", WIDTH, HEADS, 4 * WIDTH)
    shapes |= {"txt/Embed_0/embedding": (49408, TEXT), "txt/pos_embedding": (1, 16, TEXT)}
    shapes |= {f"txt/Encoder_0/encoder_norm/{kind}": (TEXT,) for kind in ("scale", "bias")}
    shapes |= {"txt/head/kernel": (TEXT, WIDTH), "txt/head/bias": (WIDTH,)}
    for number in range(2):
        layer(f"txt/Encoder_0/encoderblock_{number}", TEXT, 2, 4 * TEXT)
    generator = np.random.default_rng(0)
    return {f"{prefix}{name}": generator.normal(size=s, scale=0.1).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture
def siglip(monkeypatch):
    """The architecture `Small`, whose only published weights would be seen as SigLIP's are; open_clip's own config."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", siglip_config()["model_cfg"])


@pytest.mark.parametrize("prefix", ["params/", ""])
def test_every_tensor_is_that_of_open_clip_s_own_loader(prefix, siglip, tmp_path):
    """Also with an optimiser's state beside the parameters, which is none of the model."""
    content = arrays(prefix) | ({"opt/mu/img/embedding/bias": np.ones(9)} if prefix else {})
    np.savez(tmp_path / "siglip.npz", **content)
    clip = materialise(tmp_path / "base", model="Small", path=str(tmp_path / "siglip.npz"))
    reference = model.create(tmp_path / "base").module
    open_clip.factory.load_checkpoint(reference, str(tmp_path / "siglip.npz"))
    assert clip.facts["weights_digest"] == model.weights_digest(reference.state_dict())
    assert clip.logit_bias.item() == content[f"{prefix}b"].item()
    assert clip.facts["source"]["file"] == "siglip.npz"


def change(name: str, value) -> dict[str, np.ndarray]:
    content = arrays()
    found = value(content.pop(f"params/{name}"))
    return content | ({} if found is None else {f"params/{name}": found})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: change("img/embedding/bias", lambda _: None), "does not fit the architecture .KeyError: .*embedding/"),
        (lambda: change("img/embedding/bias", lambda a: a[:1]), "does not fit the architecture: .* numbers for its"),
        (lambda: change("img/embedding/bias", lambda a: a[:7]), "does not fit the architecture .RuntimeError"),
        (lambda: change("img/pos_embedding", lambda a: a[:, :3]), "does not fit the architecture .AssertionError"),
        (lambda: arrays() | {"params/img/more": np.ones(3, np.float32)}, "does not fit .* numbers for its"),
        (lambda: change("txt/head/bias", lambda a: a * np.nan), r"1 arrays are no finite .*txt/head/bias"),
        (lambda: change("txt/head/bias", lambda a: a.astype(np.int8)), r"1 arrays are no finite .*txt/head/bias"),
        (lambda: change("txt/head/bias", lambda a: np.array([Bomb("ran")], dtype=object)), "not a whole .npz file"),
        (lambda: {"a": np.ones(2, np.float32)}, "does not fit the architecture .KeyError"),
    ],
)
def test_a_file_that_is_not_the_whole_model_is_refused(content, message, siglip, tmp_path, monkeypatch):
    """open_clip alone would broadcast a short array, pass over a further one, and take NaN."""
    monkeypatch.chdir(tmp_path)
    np.savez("w.npz", **content())
    with pytest.raises(UserError, match=rf"w.npz.*{message}") as caught:
        materialise(tmp_path / "base", model="Small", path="w.npz")
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


class Bomb:
    """A pickle that would make a file when it is read."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


def test_a_broken_file_and_another_architecture_are_refused(siglip, tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", **arrays())
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Native", tiny_config()["model_cfg"])
    with pytest.raises(UserError, match=r"does not fit the architecture .AttributeError.*; check base.model"):
        materialise(tmp_path / "base", model="Native", path=str(tmp_path / "w.npz"))
    whole = (tmp_path / "w.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no archive", json.dumps({}).encode()):
        (tmp_path / "w.npz").write_bytes(broken)
        with pytest.raises(UserError, match=r"w.npz: not a whole .npz file"):
            materialise(tmp_path / "base", model="Small", path=str(tmp_path / "w.npz"))


def test_what_is_read_is_used(siglip, tmp_path):
    """Not the random weights of the creation: another file gives other features."""
    features = []
    for scale in (1, 2):
        np.savez(tmp_path / "w.npz", **{name: array * scale for name, array in arrays().items()})
        clip = materialise(tmp_path / f"base{scale}", model="Small", path=str(tmp_path / "w.npz"))
        features.append(clip.encode_text(clip.tokenize(["a cat"])))
    assert not torch.allclose(*features)
