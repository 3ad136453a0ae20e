"""pipeline_lib.base.run, checkpoints: each source ends as one folder with the right features, bad ones as one line."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from pipeline_lib import model
from pipeline_lib.base import checkpoints
from pipeline_lib.base import run as base
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from tests.base.made import CAPTIONS, CPU, assert_left_nothing, data, edit, hugging_face_model, materialise, settings
from tests.tiny_model import write_tiny_clip, write_tiny_hf_clip

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"


# Checkpoints


def test_checkpoint_of_a_named_architecture(tmp_path, weights, tiny_architecture):
    """The weights arrive bitwise; the activation is the architecture's; preprocessing is that of its published tags."""
    save_file(weights, tmp_path / "mine.safetensors")
    clip = materialise(tmp_path / "base", model="Tiny-quickgelu", path=str(tmp_path / "mine.safetensors"))
    assert model.weights_digest(clip.module.state_dict()) == model.weights_digest(weights)
    assert clip.facts["quick_gelu"] is True
    assert clip.facts["source"] == {"kind": "checkpoint", "file": "mine.safetensors", "model": "Tiny-quickgelu"}
    assert (clip.mean, clip.preprocess.config["resize_mode"]) == ((0.5, 0.4, 0.3), "squash")
    assert (tmp_path / "base" / artifacts.TRAINED_ON).read_text() == ""
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'base'}")
    token_ids = clip.tokenize(CAPTIONS)
    assert torch.equal(plain.eval().encode_text(token_ids), clip.module.encode_text(token_ids))
    assert transform.transforms[-1].mean == [0.5, 0.4, 0.3]


def test_the_written_directory_loads_after_a_move_and_names_no_place(tmp_path, weights, tiny_architecture):
    torch.save(weights, tmp_path / "mine.pt")
    clip = materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "mine.pt"))
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert model.load(moved).facts == clip.facts
    for path in moved.rglob("*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {}}},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()},
        lambda w: {"epoch": 1, "model_state_dict": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}, "hyper_parameters": {"lr": 1.0}},
        lambda w: {f"student.backbone.{k}": v for k, v in w.items()},
        lambda w: {k.replace("visual.", "visual._orig_mod.", 1): v for k, v in w.items()},
        lambda w: {k.replace("visual.", "_orig_mod.visual.module.", 1): v for k, v in w.items()},
        lambda w: {"n_averaged": torch.tensor(4), **{f"module.{k}": v for k, v in w.items()}},
        lambda w: {k if k == "logit_scale" else f"backbone.{k}": v for k, v in w.items()},
        lambda w: (
            {f"backbone.{k}": v for k, v in (w | {"logit_scale": torch.ones(())}).items()}
            | {"logit_scale": w["logit_scale"]}
        ),
        lambda w: w | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_wrapped_checkpoints_are_unwrapped(wrap, suffix, tmp_path, weights):
    """Training checkpoints, prefixes of wrappers and compilers, integers among the tensors, bitwise.

    The last is the released CLIP-Refine code's: the wrapper's scale is the one that it trains and uses.
    """
    path = tmp_path / f"mine{suffix}"
    torch.save(wrap(weights), path)
    assert model.weights_digest(checkpoints.read_checkpoint(path)) == model.weights_digest(weights)


def test_half_precision_checkpoints_become_float32(tmp_path, weights, tiny_architecture):
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "half.safetensors")
    clip = materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "half.safetensors"))
    expected = {name: tensor.half().float() for name, tensor in weights.items()}
    assert clip.facts["weights_digest"] == model.weights_digest(expected)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)


def cut(path: Path) -> None:
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-20])


def cut_zip(path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("openai.pt", scripted, "TorchScript archive.*pretrained: openai.*save_file"),
        ("run.pt", lambda p: torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, p), "argparse.Namespace"),
        ("whole.pt", lambda p: torch.save(torch.nn.Linear(2, 2), p), "Python objects .torch.nn.modules.linear.Linear"),
        ("noise.pt", lambda p: p.write_bytes(b"\x00\x01 no checkpoint"), "noise.pt: not a PyTorch checkpoint"),
        ("text.pt", lambda p: p.write_text("<html>not found</html>"), "text.pt: not a PyTorch checkpoint"),
        (
            "text.safetensors",
            lambda p: p.write_text("<html>not found"),
            "text.safetensors: not a safetensors checkpoint",
        ),
        ("lfs.pt", lambda p: p.write_text(POINTER), "a Git LFS pointer, not the weights; .* `git lfs pull`"),
        ("lfs.safetensors", lambda p: p.write_text(POINTER), "a Git LFS pointer, not the weights"),
        ("empty.pt", lambda p: p.write_bytes(b""), "not a whole PyTorch checkpoint"),
        ("cut.pt", cut_zip, "not a whole PyTorch checkpoint"),
        ("cut.safetensors", cut, "not a whole safetensors file"),
        ("list.pt", lambda p: torch.save([torch.ones(1)], p), "holds no weights"),
        ("nothing.pt", lambda p: torch.save({}, p), "holds no weights"),
        ("model.pt", lambda p: torch.save({"model": {"a": 1}}, p), "`model` is not a tensor"),
        (
            "two.pt",
            lambda p: torch.save({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, p),
            r"several models \(`model`, `ema`\); save",
        ),
        ("other.pt", lambda p: torch.save({"a": torch.ones(1)}, p), r"1 unexpected \(a\); check base.model$"),
        ("missing.pt", lambda p: None, "no such file or folder"),
    ],
)
def test_bad_checkpoints_get_one_sentence(name, write, message, tmp_path, tiny_architecture):
    """Nothing is unpickled, nothing is left behind, and the file is named with what to do about it."""
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        materialise(tmp_path / "base", model="Tiny", path=str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


def test_a_checkpoint_of_another_architecture_names_the_first_tensors(tmp_path, weights, tiny_architecture):
    del weights["visual.proj"]
    weights["text_projection"] = torch.zeros(32, 8)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"base.model `Tiny`.*1 missing \(visual.proj\).*text_projection \[32, 8\]"):
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.safetensors"))


def test_pickled_code_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="could run code"):
        checkpoints.read_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "x.pt"}, "base.path: x.pt: no such file"),
        ({"path": None, "model": "Tiny"}, "base.path: missing"),
        (
            {"path": "."},
            r"^base.path: . is no Hugging Face CLIPModel or SiglipModel folder \(no config.json\); give",
        ),
        ({"path": "w.pt"}, "base.model: missing"),
        ({"path": "w.pt", "model": "Tinny"}, "base.model: open_clip knows no `Tinny`; did you mean `Tiny`"),
        ({"path": "w.pt", "model": "qqq"}, "open_clip knows no `qqq`; known: "),
        ({"path": "w.pt", "model": "hf-hub:a/b"}, "names a place, not an architecture.*base.path, with `source: hub`"),
        ({"path": "w.pt", "model": "ViT-L-14"}, "published weights of `ViT-L-14` differ in their preprocessing"),
        ({"path": "w.pt", "model": "Tiny", "pretrained": "openai"}, "trained with QuickGELU; use `Tiny-quickgelu`"),
        ({"source": "local_dir", "path": "empty"}, r"^empty/open_clip_config.json: no `model_cfg` with embed_dim"),
        ({"source": "local_dir", "path": "."}, r"no open_clip_config.json; for other checkpoints"),
        ({"source": "open_clip", "model": "Tiny"}, "base.pretrained: missing; `Tiny` has own, openai"),
        ({"source": "open_clip", "model": "Tiny", "pretrained": "opnai"}, "no tag `opnai`; did you mean `openai`"),
        ({"source": "open_clip", "model": "Tiny-quickgelu", "pretrained": "own"}, "not trained with Quick.*use `Tiny`"),
    ],
)
def test_wrong_settings_get_one_sentence(given, message, tmp_path, monkeypatch, tiny_architecture):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1)}, "w.pt")
    Path("empty").mkdir()
    Path("empty", model.CONFIG).write_text("{}")
    save_file({"a": torch.ones(1)}, Path("empty", model.WEIGHTS))
    with pytest.raises(UserError, match=message):
        materialise(Path("base"), **given)
    assert_left_nothing(tmp_path)


def test_the_demo_alone_needs_its_block(tmp_path):
    chosen = dataclasses.replace(settings(source="demo"), demo=None)
    with pytest.raises(UserError, match=r"base.demo: missing; `source: demo` needs it"):
        base.run(chosen, data(), tmp_path / "base", device=CPU)
    chosen = dataclasses.replace(settings(source="local_dir", path=str(write_tiny_clip(tmp_path / "tiny"))), demo=None)
    assert base.run(chosen, data(), tmp_path / "base", device=CPU).source["kind"] == "local_dir"


# Published tags


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32"])
def test_a_tag_with_the_other_activation_is_refused_before_any_download(name, tmp_path, monkeypatch):
    """open_clip only warns here, and builds a model with the wrong activation."""
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_a, **_k: pytest.fail("downloaded"))
    with pytest.raises(UserError, match="`openai` were trained with QuickGELU; use `ViT-B-32-quickgelu`"):
        materialise(tmp_path / "base", source="open_clip", model=name, pretrained="openai")


def test_every_tag_of_open_clip_is_accepted_under_exactly_one_activation():
    """The refusal locks no published weights out: each tag passes under the architecture name that fits it."""
    for name in model.architectures():
        for tag, record in model.pretrained_tags(name).items():
            fits = bool(record.get("quick_gelu")) <= bool(model.architecture(name).get("quick_gelu"))
            chosen = settings(source="open_clip", model=name, pretrained=tag)
            if fits:
                assert base._tag(chosen, name, model.architecture(name)) == (tag, record)
            else:
                assert tag in model.pretrained_tags(f"{name}-quickgelu")
                assert model.architecture(f"{name}-quickgelu")["quick_gelu"]


def test_a_published_tag_is_downloaded_and_keeps_its_activation_and_preprocessing(
    tmp_path, monkeypatch, weights, tiny_architecture
):
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    asked = []

    def download(record, **_options):
        asked.append(record["hf_hub"])
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    clip = materialise(tmp_path / "base", source="open_clip", model="Tiny-quickgelu", pretrained="openai")
    assert asked == ["nobody/tiny/"]
    assert clip.facts["quick_gelu"] is True
    assert clip.facts["source"] == {"kind": "open_clip", "model": "Tiny-quickgelu", "pretrained": "openai"}
    assert "huggingface.co/nobody/tiny" in clip.facts["license"]
    monkeypatch.undo()  # open_clip's own way, under the same patch, as the reference
    config_file = json.loads((tmp_path / "base" / model.CONFIG).read_text())
    assert config_file["model_cfg"]["quick_gelu"] is True
    assert config_file["preprocess_cfg"] == {
        "size": 32,
        "mode": "RGB",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "fill_color": 0,
    }


def test_a_failed_download_says_how_to_go_without(tmp_path, monkeypatch, tiny_architecture):
    def download(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    with pytest.raises(UserError, match=r"nobody/tiny/: download failed: no route.*`source: checkpoint`.*Tiny`"):
        materialise(tmp_path / "base", source="open_clip", model="Tiny", pretrained="own")
    assert_left_nothing(tmp_path)


# Hugging Face


def assert_same_features(clip: model.Clip, theirs, token_ids: torch.Tensor) -> None:
    """To rounding, in float64, image and text, against transformers' own forward pass."""
    clip.module.double()
    theirs.double()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    out = theirs(input_ids=token_ids, pixel_values=clip.normalize(pixels))
    logits = (
        clip.logit_scale
        * torch.nn.functional.normalize(clip.encode_image(pixels))
        @ (torch.nn.functional.normalize(clip.encode_text(token_ids)).T)
    )
    torch.testing.assert_close(logits, out.logits_per_image, rtol=1e-9, atol=1e-9)
    images = theirs.visual_projection(theirs.vision_model(pixel_values=clip.normalize(pixels)).pooler_output)
    texts = theirs.text_projection(theirs.text_model(input_ids=token_ids).pooler_output)
    torch.testing.assert_close(clip.encode_image(pixels), images, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(clip.encode_text(token_ids), texts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "given", [{}, {"activation": "gelu"}, {"eos": 2}, {"eps": 1e-3}, {"num_hidden_layers": 1, "eos": 49407}]
)
def test_hugging_face_folders_give_transformers_features(given, tmp_path):
    """Raw features and logits, for both activations, both ways of pooling (transformers treats eos 2 apart)."""
    theirs = hugging_face_model(tmp_path / "hf", **given)
    clip = materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert clip.facts["quick_gelu"] is (given.get("activation") != "gelu")
    assert_same_features(clip, theirs, clip.tokenize(CAPTIONS))
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'base'}")
    found = model.load(tmp_path / "base").module.encode_text(clip.tokenize(CAPTIONS))
    assert torch.equal(plain.eval().encode_text(clip.tokenize(CAPTIONS)), found)


def test_sharded_and_pickled_hugging_face_weights_are_read(tmp_path):
    theirs = hugging_face_model(tmp_path / "hf")
    whole = checkpoints.read_checkpoint(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(whole, tmp_path / "hf" / "pytorch_model.bin")
    clip = materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert_same_features(clip, theirs, clip.tokenize(CAPTIONS))
    theirs.float().save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    again = materialise(tmp_path / "again", path=str(tmp_path / "sharded"))
    assert again.facts["weights_digest"] == model.load(tmp_path / "base").facts["weights_digest"]


def test_the_standard_tokenizer_is_recognised_and_another_is_kept(tmp_path):
    """OpenAI's vocabulary alone means open_clip's own tokenizer; any other tokenizer comes along and is used."""
    theirs = hugging_face_model(tmp_path / "hf")
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(model.standard_vocabulary()))
    clip = materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert "hf_tokenizer_name" not in clip.config["model_cfg"]["text_cfg"]
    own = write_tiny_hf_clip(tmp_path / "own")  # for its tokenizer: <pad> is 1, </s> is 2
    theirs = hugging_face_model(tmp_path / "small", vocab_size=24, eos=3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(own / name, tmp_path / "small" / name)
    clip = materialise(tmp_path / "kept", path=str(tmp_path / "small"))
    token_ids = clip.tokenize(["a red cat"])
    assert token_ids[0, :7].tolist() == [0, 4, 12, 10, 2, 1, 1]
    token_ids[:, 4] = 3  # this tokenizer's end; transformers' pooling needs the model's
    assert_same_features(clip, theirs, token_ids)
    (tmp_path / "small" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer.json, and its vocabulary is not the standard"):
        materialise(tmp_path / "base", path=str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: edit(d / "config.json", lambda c: c.update(model_type="blip")), "model_type is `blip`"),
        (lambda d: edit(d / "config.json", lambda c: c["text_config"].update(hidden_act="relu")), "hidden_act"),
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors or pytorch_model.bin"),
        (
            lambda d: save_file({"logit_scale": torch.ones(())}, d / "model.safetensors"),
            "base.path: .*hf: tensor 'text_projection.weight' is missing; not a whole",
        ),
        (lambda d: (d / "open_clip_config.json").write_text("{}"), "use `source: local_dir`"),
        (
            lambda d: save_file(
                checkpoints.read_checkpoint(d / "model.safetensors") | {"head.weight": torch.ones(2)},
                d / "model.safetensors",
            ),
            "`head.weight` belongs to no part",
        ),
        (lambda d: edit(d / "config.json", lambda c: c["text_config"].update(num_hidden_layers=3)), "12 missing"),
    ],
)
def test_hugging_face_folders_that_cannot_be_converted_say_why(change, message, tmp_path):
    hugging_face_model(tmp_path / "hf")
    change(tmp_path / "hf")
    with pytest.raises(UserError, match=message):
        materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert_left_nothing(tmp_path)


# open_clip directories


@pytest.mark.parametrize("kind", ["native", "quick_gelu", "hugging_face"])
def test_local_directories_are_copied(kind, tmp_path):
    """Same facts, whatever the tower; the manifest of the copy records where it came from."""
    if kind == "hugging_face":
        source = write_tiny_hf_clip(tmp_path / "source")
    else:
        source = write_tiny_clip(tmp_path / "source", quick_gelu=kind == "quick_gelu")
    before = model.load(source)
    clip = materialise(tmp_path / "base", source="local_dir", path=str(source))
    assert {key: clip.facts[key] for key in before.facts} == before.facts
    assert clip.facts["source"] == {"kind": "local_dir", "folder": "source", "source": None}


def test_a_text_tower_without_its_files_is_fetched_or_refused(tmp_path):
    """open_clip saves no config.json for such a tower; without network that is one sentence."""
    source = write_tiny_hf_clip(tmp_path / "source")
    (source / model.TOWER_CONFIG).unlink()
    with pytest.raises(UserError, match="tiny/tower: cannot be fetched"):
        materialise(tmp_path / "base", source="local_dir", path=str(source))
    assert_left_nothing(tmp_path)


def test_a_local_directory_hands_down_what_it_was_trained_on(tmp_path, weights, tiny_architecture):
    """A refined model taken as the base of another run stays barred from its own training images."""
    save_file(weights, tmp_path / "w.safetensors")
    materialise(tmp_path / "first", model="Tiny", path=str(tmp_path / "w.safetensors"))
    lines = '{"key":"a","sha256":"00"}\n{"key":"b","sha256":"11"}\n'
    (tmp_path / "first" / artifacts.TRAINED_ON).write_text(lines)
    facts = artifacts.read_manifest(tmp_path / "first")["model"]
    artifacts.write_manifest(tmp_path / "first", "base", model=facts)
    clip = materialise(tmp_path / "base", source="local_dir", path=str(tmp_path / "first"))
    assert (tmp_path / "base" / artifacts.TRAINED_ON).read_text() == lines
    assert clip.facts["source"]["source"]["kind"] == "checkpoint"
    edit(tmp_path / "first" / model.CONFIG, lambda c: c["model_cfg"].update(quick_gelu=True))
    with pytest.raises(UserError, match="quick_gelu is true, recorded false"):
        materialise(tmp_path / "again", source="local_dir", path=str(tmp_path / "first"))


# What is written


def test_a_model_that_reads_back_differently_fails(tmp_path, weights, tiny_architecture, monkeypatch):
    """The comparison after writing is real: weights spoilt on their way to the disk stop the stage."""
    save_file(weights, tmp_path / "w.safetensors")
    save = model.save_weights

    def spoilt(state_dict, path):
        save({**state_dict, "visual.proj": state_dict["visual.proj"] * 1.001}, path)

    monkeypatch.setattr(model.folder, "save_weights", spoilt)
    with pytest.raises(RuntimeError, match="encode_image of the written model differs"):
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.safetensors"))
    assert_left_nothing(tmp_path)


def test_weights_that_are_not_numbers_are_refused(tmp_path, weights, tiny_architecture):
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w.safetensors: .*1 not finite \(visual.proj\); check base.model"):
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.safetensors"))
    assert_left_nothing(tmp_path)


def test_an_earlier_base_survives_a_failure(tmp_path, weights, tiny_architecture):
    save_file(weights, tmp_path / "w.safetensors")
    before = materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.safetensors")).facts
    with pytest.raises(UserError):
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "gone.safetensors"))
    assert model.load(tmp_path / "base").facts == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_random_vit_b_32(name, tmp_path):
    """The path of someone with a GPU, at its real size: a checkpoint of 151 M parameters."""
    torch.manual_seed(0)
    module = open_clip.create_model(name).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "vit.pt")
    clip = materialise(tmp_path / "base", model=name, path=str(tmp_path / "vit.pt"))
    assert clip.facts["quick_gelu"] is name.endswith("quickgelu")
    token_ids = clip.tokenize(CAPTIONS)
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(clip.module.encode_text(token_ids), module.encode_text(token_ids))
        images = module.encode_image(clip.normalize(pixels))
        assert torch.equal(clip.module.encode_image(clip.normalize(pixels)), images)
        torch.testing.assert_close(clip.encode_image(pixels), images, rtol=0, atol=1e-5)
        torch.testing.assert_close(clip.encode_text(token_ids[:, :16]), clip.encode_text(token_ids), rtol=0, atol=1e-5)
