"""pipeline_lib.base.checkpoints, and what stage base makes of the tensors: whole and exact, or one sentence."""

import json
import struct
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline_lib import model
from pipeline_lib.base import checkpoints
from pipeline_lib.core.errors import UserError
from tests.base.made import (
    CAPTIONS,
    assert_left_nothing,
    edit,
    hugging_face_model,
    materialise,
)
from tests.tiny_model import tiny_config, write_tiny_clip


class Bomb:
    """A pickle that would make a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def shards(tensors: dict[str, torch.Tensor], folder: Path, suffix: str, stem: str = "pytorch_model") -> Path:
    """Write two shards and their index as transformers does; return the index."""
    folder.mkdir(exist_ok=True)
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = folder / f"{stem}-{number:05d}-of-00002{suffix}"
        content = {name: tensors[name].contiguous() for name in part}
        save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
        places |= dict.fromkeys(part, file.name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


# Shards


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_shards_are_one_checkpoint(suffix, weights, tmp_path):
    """Bitwise, and with one prefix over all shards, which no shard is taken to have for itself."""
    index = shards({f"model.{name}": tensor for name, tensor in weights.items()}, tmp_path / "s", suffix)
    assert model.weights_digest(checkpoints.read(index)) == model.weights_digest(weights)


@pytest.mark.parametrize(("suffix", "stem"), [(".bin", "pytorch_model"), (".safetensors", "model")])
def test_sharded_hugging_face_folders_are_read_whole(suffix, stem, tmp_path):
    hugging_face_model(tmp_path / "hf")
    expected = materialise(tmp_path / "whole", path=str(tmp_path / "hf")).facts["weights_digest"]
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors").unlink()
    shards(tensors, tmp_path / "hf", suffix, stem)
    assert materialise(tmp_path / "base", path=str(tmp_path / "hf")).facts["weights_digest"] == expected


def drop_from_index(index: Path) -> None:
    edit(index, lambda content: content["weight_map"].popitem())


def drop_from_shard(index: Path) -> None:
    file = next(index.parent.glob("*-00001-*.safetensors"))
    tensors = load_file(file)
    tensors.popitem()
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_from_index, r"index.json: .*-00002-.* is not the file that it lists: 0 tensors missing, 1 more \(\w+"),
        (drop_from_shard, r"index.json: .*-00001-.* is not the file that it lists: 1 tensors missing, 0 more"),
        (lambda index: next(index.parent.glob("*-00002-*")).unlink(), "-00002-of-00002.safetensors: no such file"),
        (lambda index: index.write_text("{}"), "no `weight_map`"),
        (lambda index: index.write_text('{"weight_map": {"a": "../a.bin"}}'), "names `../a.bin`, which is not a file"),
        (lambda index: index.write_text('{"weight_map": {"a": ""}}'), "names ``, which is not a file"),
        (lambda index: index.write_text(json.dumps({"weight_map": {"a": "a" * 300}})), "aaa: no such file"),
        (lambda index: index.write_text('{"weight_map": {"a": "\\ud800"}}'), "no such file"),
    ],
)
def test_shards_that_are_not_whole_are_refused(spoil, message, weights, tmp_path):
    index = shards(weights, tmp_path / "s", ".safetensors")
    spoil(index)
    with pytest.raises(UserError, match=message):
        checkpoints.read(index)


def test_any_shard_leads_to_the_whole_in_an_open_clip_folder_and_as_a_file(
    weights,
    tiny_architecture,
    tmp_path,
):
    index = shards(weights, tmp_path / "s", ".safetensors", "model")
    (index.parent / model.CONFIG).write_text(json.dumps(tiny_config()))
    clip = materialise(tmp_path / "base", source="local_dir", path=str(index.parent))
    assert clip.facts["weights_digest"] == model.weights_digest(weights)
    for path in sorted(index.parent.glob("model*")):
        again = materialise(tmp_path / "again", model="Tiny", path=str(path))
        assert again.facts["weights_digest"] == model.weights_digest(weights)


# Names


def test_two_models_in_one_file_are_not_mixed(tmp_path):
    torch.save({"module.a.w": torch.ones(1), "a.w": torch.zeros(1)}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"two.pt: two tensors are named alike"):
        checkpoints.read_checkpoint(tmp_path / "two.pt")


def test_a_part_of_an_architecture_that_is_named_like_a_wrapper_stays(tmp_path):
    names = ["visual.trunk.stages.0.module.weight", "visual.trunk.head.weight", "logit_scale", "ln_final.weight"]
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "w.pt")
    assert list(checkpoints.read_checkpoint(tmp_path / "w.pt")) == names


def test_names_of_another_part_are_no_prefix(weights, tiny_architecture, tmp_path):
    """A loss with weights of its own beside the model: nothing is dropped in silence."""
    content = {f"model.{name}": tensor for name, tensor in weights.items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": content}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"62 missing .*63 unexpected \(model\."):
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.pt"))


def test_a_separate_text_tower_s_names_fit_a_native_one(weights, tiny_architecture, tmp_path):
    apart = {name if name.startswith(("visual.", "logit")) else f"text.{name}": t for name, t in weights.items()}
    torch.save(apart, tmp_path / "w.pt")
    clip = materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.pt"))
    assert clip.facts["weights_digest"] == model.weights_digest(weights)


# Hugging Face names beside open_clip's architecture


def open_clip_config(quick_gelu: bool) -> dict:
    """The architecture of `hugging_face_model` in open_clip's words."""
    config = tiny_config(quick_gelu=quick_gelu)
    config["model_cfg"]["vision_cfg"] |= {"width": 48, "head_width": 16, "mlp_ratio": 2.0}
    config["model_cfg"]["text_cfg"] |= {"heads": 4, "mlp_ratio": 1.5}
    return config


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_an_open_clip_config_beside_hugging_face_weights(both, file, tmp_path):
    """`both`: config.json is there as well, and transformers' own forward pass is the reference."""
    theirs = hugging_face_model(tmp_path / "hf")
    (tmp_path / "hf" / model.CONFIG).write_text(json.dumps(open_clip_config(quick_gelu=True)))
    if file == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "hf" / file)
        (tmp_path / "hf" / "model.safetensors").unlink()
    if not both:
        (tmp_path / "hf" / "config.json").unlink()
    clip = materialise(tmp_path / "base", source="local_dir", path=str(tmp_path / "hf"))
    token_ids = clip.tokenize(CAPTIONS)
    expected = theirs.text_projection(theirs.text_model(input_ids=token_ids).pooler_output)
    torch.testing.assert_close(clip.encode_text(token_ids), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="use `source: local_dir`"):  # which takes it, as above
        materialise(tmp_path / "again", path=str(tmp_path / "hf"))


def test_two_configs_that_contradict_each_other_are_refused(tmp_path):
    hugging_face_model(tmp_path / "hf")
    (tmp_path / "hf" / model.CONFIG).write_text(json.dumps(open_clip_config(quick_gelu=False)))
    with pytest.raises(UserError, match="features would differ by"):
        materialise(tmp_path / "base", source="local_dir", path=str(tmp_path / "hf"))
    assert_left_nothing(tmp_path)


def test_a_file_of_hugging_face_names_fits_an_architecture(monkeypatch, tmp_path):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Own", open_clip_config(quick_gelu=True)["model_cfg"])
    hugging_face_model(tmp_path / "hf")
    expected = materialise(tmp_path / "folder", path=str(tmp_path / "hf")).facts["weights_digest"]
    clip = materialise(tmp_path / "base", model="Own", path=str(tmp_path / "hf" / "model.safetensors"))
    assert clip.facts["weights_digest"] == expected


# Hostile and broken weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_code_in_a_hugging_face_folder_is_never_run(name, tmp_path):
    hugging_face_model(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1), "b": Bomb(tmp_path / "ran")}, tmp_path / "hf" / name)
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="could run code"):
        materialise(tmp_path / "base", path=str(tmp_path / "hf"))
    assert not (tmp_path / "ran").exists()


def with_header(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        with_header({"a": ONE}, length=1 << 40),
        with_header({"a": ONE}, length=1 << 63),
        with_header({"a": ONE, "b": ONE}),
        with_header({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}),
        with_header({"a": {**ONE, "data_offsets": [0, 1 << 40]}}),
        with_header({"a": {**ONE, "shape": [1 << 40]}}),
        with_header({"a": {**ONE, "shape": [1 << 62, 1 << 62]}}),
        with_header({"a": {**ONE, "data_offsets": [8, 0]}}),
        with_header({"a": {**ONE, "dtype": "F31"}}),
        with_header({"a": {**ONE, "shape": [-2]}}),
        with_header({"a": ONE}, data=b"\0" * 4),
        with_header({"a": ONE}, data=b"\0" * 64),
        with_header({"a": 3}),
        with_header({}),
    ],
    ids=lambda content: content[8:60].decode(errors="replace"),
)
def test_a_safetensors_file_that_lies_about_itself_is_refused(content, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"bad.safetensors: (not a whole safetensors file|holds no weights)") as caught:
        checkpoints.read_checkpoint(tmp_path / "bad.safetensors")
    assert "\n" not in str(caught.value)


def spoilt(weights: dict, change) -> dict:
    return weights | {"visual.proj": change(weights["visual.proj"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.index_fill(0, torch.tensor([1]), torch.nan), r"1 not finite \(visual.proj\)"),
        (lambda w: w.index_fill(0, torch.tensor([1]), -torch.inf), r"1 not finite \(visual.proj\)"),
        (lambda w: w.double() * 1e300, r"1 not finite \(visual.proj\)"),  # in float32
        (lambda w: (w * 100).to(torch.int8), r"1 of another type \(visual.proj torch.int8\)"),
        (lambda w: w > 0, r"1 of another type \(visual.proj torch.bool\)"),
        (lambda w: w.to(torch.complex64), r"1 of another type \(visual.proj torch.complex64\)"),
        (lambda w: w.to_sparse(), r"1 of another type \(visual.proj torch.float32\)"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "1 of another type"),
        (lambda w: w.T, "1 of another shape"),
        (lambda w: w[None], "1 of another shape"),
        (lambda w: torch.ones(()).expand(10**6, 10**6), "1 of another shape"),  # 4 bytes in the file
    ],
)
def test_weights_that_cannot_be_the_model_s_are_refused_by_name(
    change,
    message,
    weights,
    tiny_architecture,
    tmp_path,
):
    torch.save(spoilt(weights, change), tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        materialise(tmp_path / "base", model="Tiny", path=str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)
    assert_left_nothing(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_in_open_clip_and_hugging_face_folders(dtype, tmp_path):
    own = write_tiny_clip(tmp_path / "own")
    save_file({name: tensor.to(dtype) for name, tensor in load_file(own / model.WEIGHTS).items()}, own / model.WEIGHTS)
    expected = {name: tensor.float() for name, tensor in load_file(own / model.WEIGHTS).items()}
    clip = materialise(tmp_path / "base", source="local_dir", path=str(own))
    assert clip.facts["weights_digest"] == model.weights_digest(expected)
    theirs = hugging_face_model(tmp_path / "hf").to(dtype)
    theirs.save_pretrained(tmp_path / "hf")
    clip = materialise(tmp_path / "half", path=str(tmp_path / "hf"))
    found = clip.encode_text(clip.tokenize(CAPTIONS))
    ids = clip.tokenize(CAPTIONS)
    expected_text = theirs.float().text_projection(theirs.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(found, expected_text, rtol=1e-4, atol=1e-5)
