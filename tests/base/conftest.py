"""Fixtures of stage base: no network, a tiny architecture that open_clip seems to know, weights for it."""

import socket

import open_clip
import pytest
from safetensors.torch import load_file

from pipeline_lib import model
from tests.tiny_model import tiny_config, write_tiny_clip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tiny_architecture(monkeypatch):
    """Two architecture names, `Tiny` and `Tiny-quickgelu`, and two tags, as open_clip would know them."""
    record = {
        "hf_hub": "nobody/tiny/",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    plain, quick = (tiny_config(quick_gelu=flag)["model_cfg"] for flag in (False, True))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", plain)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-quickgelu", quick)
    tags = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(tags, "Tiny", {"own": record, "openai": {**record, "quick_gelu": True}})
    monkeypatch.setitem(tags, "Tiny-quickgelu", {"openai": {**record, "quick_gelu": True}})
    return record


@pytest.fixture
def weights(tmp_path):
    """Weights of the tiny model, as a state dict."""
    return load_file(write_tiny_clip(tmp_path / "tiny", seed=3) / model.WEIGHTS)
