"""pipeline_lib.base.hub: models by their names on the hub, from its local cache, and from a hub that a test serves."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.base import hub
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from tests.base.made import CAPTIONS, assert_left_nothing, hugging_face_model, materialise
from tests.tiny_model import tiny_config, write_tiny_clip, write_tiny_hf_clip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: mit\ntags: [clip]\n---\n# A model\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache: Path, repository: str, reference: str = "main") -> Path:
    """The folder of a commit, as huggingface_hub lays it out."""
    top = cache / f"models--{repository.replace('/', '--')}"
    (top / "refs").mkdir(parents=True)
    (top / "refs" / reference).write_text(COMMIT)
    (top / "snapshots" / COMMIT).mkdir(parents=True)
    return top / "snapshots" / COMMIT


@pytest.mark.parametrize("path", ["openai/tiny", "hf-hub:openai/tiny", "https://huggingface.co/openai/tiny"])
def test_a_clip_model_of_the_cache_by_its_name(path, cache, tmp_path):
    """transformers' features; commit and licence are recorded, and no place on this machine."""
    theirs = hugging_face_model(cached(cache, "openai/tiny"))
    (cache / f"models--openai--tiny/snapshots/{COMMIT}/README.md").write_text(CARD)
    clip = materialise(tmp_path / "base", source="hub", path=path)
    assert clip.facts["license"] == "mit (https://huggingface.co/openai/tiny)"
    assert clip.facts["source"] == {
        "kind": "hub",
        "repository": "openai/tiny",
        "revision": COMMIT,
        "assumed_of_openai": ["preprocessing", "tokenizer"],
    }
    token_ids = clip.tokenize(CAPTIONS)
    expected = theirs.text_projection(theirs.text_model(input_ids=token_ids).pooler_output)
    torch.testing.assert_close(clip.encode_text(token_ids), expected, rtol=1e-4, atol=1e-5)
    assert str(tmp_path) not in (tmp_path / "base" / artifacts.MANIFEST).read_text()


@pytest.mark.parametrize("write", [write_tiny_clip, write_tiny_hf_clip])
def test_an_open_clip_folder_of_the_cache_at_a_revision(write, cache, tmp_path):
    """A native text tower and a Hugging Face one; the card says no licence."""
    folder = write(cached(cache, "me/tiny", reference="v1"))
    clip = materialise(tmp_path / "base", source="hub", path="me/tiny@v1")
    assert clip.facts["weights_digest"] == model.load(folder).facts["weights_digest"]
    assert (clip.facts["source"]["repository"], clip.facts["source"]["revision"]) == ("me/tiny", COMMIT)
    assert clip.facts["license"] == "see https://huggingface.co/me/tiny"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "me/none",
            r"me/none: not in the local cache of the hub, .*\(HF_HUB_OFFLINE is set\); run `hf download me/none`",
        ),
        ("me/part", "me/part: not with its weights in the local cache"),
        ("me/part@other", "me/part: not in the local cache"),
        ("ViT-B-32", "`ViT-B-32` is no model of the hub; write org/name"),
        ("../secrets/x", "is no model of the hub"),
        ("", "missing; `source: hub` needs the name"),
    ],
)
def test_what_the_cache_has_not_is_one_sentence(path, message, cache, tmp_path):
    (cached(cache, "me/part") / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=f"^base.path: .*{message}") as caught:
        materialise(tmp_path / "base", source="hub", path=path)
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


TOKENIZER = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
REST = ["README.md", "config.json", "preprocessor_config.json"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["open_clip_config.json", "open_clip_pytorch_model.bin", "open_clip_model.safetensors", "pytorch_model"],
            ["open_clip_config.json", "open_clip_model.safetensors"],
        ),
        (["open_clip_pytorch_model.bin", "pytorch_model.bin"], ["pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_weights_are_fetched_once_and_without_pickles_where_that_is_possible(weights, expected):
    """Repositories as they are: OpenAI's, those with both formats, in shards, LAION's for both libraries."""
    names = [*TOKENIZER, *REST, *weights, ".gitattributes", "onnx/model.onnx", "handler.py", "modeling_x.py"]
    assert hub.needed(names) == sorted([*TOKENIZER, *REST, *expected])


def test_a_folder_s_own_card_names_its_licence(tmp_path):
    hugging_face_model(tmp_path / "hf")
    (tmp_path / "hf/README.md").write_text(CARD)
    assert materialise(tmp_path / "base", path=str(tmp_path / "hf")).facts["license"] == "mit"


def test_siglip_is_a_tag_of_open_clip_from_the_cache(cache, tmp_path, monkeypatch):
    """A made tag of SigLIP's architecture: bias, attention to both sides, its own tokenizer, commit and licence."""
    config = tiny_config(context_length=24, vocab_size=64)["model_cfg"] | {"init_logit_bias": -10, "custom_text": True}
    config["vision_cfg"] = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    config["embed_dim"] = 96
    config["text_cfg"] |= {
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "hf_tokenizer_name": "nobody/tiny-siglip",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    record = {"hf_hub": "nobody/tiny-siglip/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-SigLIP", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-SigLIP", {"webli": {**record, "resize_mode": "squash"}})
    folder = cached(cache, "nobody/tiny-siglip")
    write_tiny_hf_clip(tmp_path / "tokens")  # for its tokenizer
    for name in model.TOKENIZER_FILES:
        if (tmp_path / "tokens" / name).is_file():
            shutil.copyfile(tmp_path / "tokens" / name, folder / name)
    missing = folder.parents[1] / ".no_exist" / COMMIT / "config.json"  # as a download marks it
    missing.parent.mkdir(parents=True)
    missing.touch()
    made = open_clip.create_model("Tiny-SigLIP")
    model.save_weights(made.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "README.md").write_text(CARD)
    clip = materialise(tmp_path / "base", source="open_clip", model="Tiny-SigLIP", pretrained="webli")
    assert clip.facts["source"]["revision"] == COMMIT
    assert clip.facts["license"].startswith("mit")
    assert clip.logit_bias.item() == -10
    assert torch.equal(clip.encode_text(clip.tokenize(CAPTIONS)), made.eval().encode_text(clip.tokenize(CAPTIONS)))
    assert torch.equal(clip.tokenize(["A Cat!"]), clip.tokenize(["a cat"]))  # canonicalised, as SigLIP reads texts


def test_siglip_2_with_patches_in_any_number_is_refused_with_open_clip_s_tag(cache, tmp_path):
    folder = cached(cache, "google/tiny-siglip")
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model_type is `siglip2`.* with `model: ViT-B-16-SigLIP2`"):
        materialise(tmp_path / "base", source="hub", path="google/tiny-siglip")
    assert model.architecture("ViT-B-16-SigLIP2")
    assert "webli" in model.pretrained_tags("ViT-B-16-SigLIP2")


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of the hub that a download asks for."""

    files: Path

    def log_message(self, *_arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.command, self.path))
        if self.path.startswith(f"/api/models/me/tiny/tree/{COMMIT}"):
            entries = [(path, path.read_bytes()) for path in sorted(self.files.iterdir())]
            body = json.dumps([
                {"type": "file", "path": path.name, "size": len(data), "oid": artifacts.sha256_bytes(data)}
                for path, data in entries
            ]).encode()  # fmt: skip
        elif self.path.startswith("/api/models/me/tiny"):
            names = [{"rfilename": path.name} for path in sorted(self.files.iterdir())]
            body = json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": names}).encode()
        elif self.path.startswith(f"/me/tiny/resolve/{COMMIT}/"):
            body = (self.files / self.path.rpartition("/")[2]).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{artifacts.sha256_bytes(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


FETCH = """
import sys
from pipeline_lib.base import hub
for place in sys.argv[1:]:
    try:
        print(hub.fetch(place))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_then_found_offline(tmp_path, monkeypatch):
    """A made hub on this machine: the pickle beside the safetensors is never asked for."""
    monkeypatch.undo()  # this one test opens a connection, to itself
    Hub.files, Hub.asked = write_tiny_clip(tmp_path / "files"), []
    (Hub.files / "open_clip_pytorch_model.bin").write_bytes(b"a pickle")
    (Hub.files / "README.md").write_text(CARD)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def fetch(**environment):
        there = {**os.environ, "HF_HOME": str(tmp_path / "home"), **environment}
        command = [sys.executable, "-c", FETCH, "me/tiny", "me/none"]
        return subprocess.run(command, env=there, check=True, capture_output=True, text=True).stdout.splitlines()

    try:
        first, missing = fetch(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_OFFLINE="0")
    finally:
        server.shutdown()
        server.server_close()
    folder = tmp_path / f"home/hub/models--me--tiny/snapshots/{COMMIT}"
    assert first == f"Snapshot(repository='me/tiny', revision='{COMMIT}', folder={folder!r})"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    assert not [path for _, path in Hub.asked if path.endswith(".bin")]
    assert missing.startswith("UserError me/none: not on the hub, or only for some")
    assert fetch(HF_HUB_OFFLINE="1")[0] == first
