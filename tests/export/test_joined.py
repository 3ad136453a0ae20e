"""Exports of a model whose texts go through a language model: each gives its features elsewhere, or is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from pipeline_lib import export, model
from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.evaluate.inputs import open_model
from pipeline_lib.export import __main__ as command
from pipeline_lib.export import card, hub, mlflow_model, onnx_towers, without_package
from pipeline_lib.export.served_model import ServedClip
from pipeline_lib.model.features import row_difference
from tests.base.made import materialise, siglip_model
from tests.export.evaluated import inside
from tests.tiny_model import write_tiny_joined
from tests.tracked_project import clean_environment, empty_store

__all__ = ["clean_environment"]  # a fixture
TEXTS = ["a red circle", "two dogs near the house on the hill and a bird " * 3, "a"]
KINDS = {
    "decoder": ("llama", {"depth": 1, "prompt": "a picture of {} near"}),
    "last token of a prompt": ("llama", {"pooling": "last", "prompt": "the photo {} in"}),
    "bidirectional": ("llama", {"attention": "bidirectional", "pooling": "last"}),
    "encoder with a prompt": ("bert", {"prompt": "the photo {} house"}),
    "first position": ("bert", {"pooling": "cls", "depth": 2}),
}


@pytest.fixture
def project(joined_project):
    with inside(joined_project) as folder:
        yield folder


def subject():
    return export.open_subject(Path("params.yaml"))


def holding(folder, license="llama3", **options):
    """The project's subject with another tiny model in its place."""
    found = subject()
    clip = model.load(write_tiny_joined(folder, license=license, **options))
    clip.facts = {**found.facts, **clip.facts}
    return dataclasses.replace(found, clip=clip)


def run(*arguments):
    command.main([str(argument) for argument in arguments])


@torch.no_grad()
def features(clip, texts=TEXTS):
    return clip.encode_text(clip.tokenize(texts))


CARD_LINES = """
import json, sys, torch
from PIL import Image
for folder, lines in json.load(open("blocks.json")).items():
    names = {}
    exec(lines, names)
    texts = torch.stack([names["encode_text"](text) for text in json.load(open("texts.json"))])
    image = names["encode_image"](names["preprocess"](Image.open("photo.png"))[None])
    torch.save({"text": texts, "image": image, "scale": names["logit_scale"]}, f"{folder}.pt")
assert not any(name.startswith("pipeline_lib") for name in sys.modules)
"""


def test_the_lines_of_the_card_give_the_features_where_this_package_is_not(project, tmp_path):
    """As they stand, by a Python that imports nothing of this project, for each way in which texts are read."""
    blocks, clips = {}, {}
    Image.linear_gradient("L").resize((40, 48)).convert("RGB").save(tmp_path / "photo.png")
    siglip_model(tmp_path / "siglip")
    materialise(tmp_path / "base", path=str(tmp_path / "siglip"))  # its config.json describes its image tower
    for number, (kind, options) in enumerate([*KINDS.values(), ("bert", {"base": tmp_path / "base"})]):
        found = holding(tmp_path / f"made_{number}", kind=kind, **options)
        hub.write_hub_folder(found, tmp_path / f"clip_{number}")
        (block,) = (tmp_path / f"clip_{number}/README.md").read_text().split("```python\n")[1:]
        blocks[f"clip_{number}"], clips[f"clip_{number}"] = block.split("```")[0], found.clip
        assert max(map(len, block.splitlines()[:30])) < 120
    (tmp_path / "blocks.json").write_text(json.dumps(blocks))
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    code = [sys.executable, "-c", CARD_LINES]
    subprocess.run(code, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name, clip in clips.items():
        plain = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        pixels = torch.from_numpy(clip.decode((tmp_path / "photo.png").read_bytes(), 10**6))[None]
        with torch.no_grad():
            assert row_difference(plain["image"], clip.encode_image(pixels)) < 1e-5
        assert row_difference(plain["text"], features(clip)) < 1e-5, name
        assert plain["scale"] == clip.logit_scale


def test_the_folder_is_that_of_the_refined_model_and_its_card_says_what_reads_the_texts(project, tmp_path):
    run("hub", "--to", tmp_path / "out", "--repository", "me/my-clip")
    source = {path.relative_to("data/refined") for path in Path("data/refined").rglob("*.safetensors")}
    assert source == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.safetensors")}
    assert artifacts.verify(tmp_path / "out") == []
    written, refined = model.load(tmp_path / "out"), model.load(Path("data/refined"))
    assert torch.equal(features(written), features(refined))
    text = (tmp_path / "out/README.md").read_text()
    assert "a language model (source: kind folder, folder llama; licence: see LICENSE beside the model)" in text
    assert "20 tokens of a text, special ones included, with causal attention" in text
    assert "That of the language model: see LICENSE beside the model." in text
    assert (tmp_path / "out/language/LICENSE").read_text() == "terms"
    assert artifacts.read_manifest(Path("data/language"))["language"]["weights_digest"] in text
    assert 'folder = huggingface_hub.snapshot_download("me/my-clip")' in text
    assert "create_model_and_transforms(f" in text
    data = ModelCard(text).data
    assert (data.library_name, "open_clip" in data.tags) == (None, False)  # whose one line does not load it


def test_the_card_says_that_the_language_model_was_tuned(project):
    found = subject()
    settings = {**found.inputs.parameters["language"], "tune": {"epochs": 1}}
    inputs = dataclasses.replace(found.inputs, parameters={**found.inputs.parameters, "language": settings})
    said = ", which was tuned on pairs of captions, and an adapter"
    assert said in card.render_card(dataclasses.replace(found, inputs=inputs), "my-clip")
    assert said not in card.render_card(found, "my-clip")


def test_the_base_beside_it_is_exported_as_ever(project, tmp_path):
    run("hub", "--to", tmp_path / "out", "--model", "base")
    assert not isinstance(model.load(tmp_path / "out"), model.JoinedClip)
    assert "language model (source" not in (tmp_path / "out/README.md").read_text()


BOTH = {"license": "other", "license_name": "those-of-the-base-and-the-language-model", "license_link": "README.md"}


@pytest.mark.parametrize(
    ("base", "language", "expected"),
    [
        ("Apache-2.0 (both towers)", "Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", "llama3", BOTH),
        ("MIT", "apache-2.0", BOTH),
        ("see https://a.org/l", "see https://a.org/l", BOTH),
    ],
)
def test_the_card_states_two_licences_as_one_only_where_they_are_the_same(project, base, language, expected, tmp_path):
    found = holding(tmp_path / "made", license=language)
    found.clip.facts["license"] = base
    assert card.licence(found) == expected
    text = card.render_card(found, "my-clip")
    assert f"That of the base model: {base}. That of the language model: {language}." in text


def test_an_encoder_that_open_clip_knows_becomes_its_text_tower(project, tmp_path):
    found = holding(tmp_path / "made", kind="bert", license="apache-2.0")
    written = hub.write_hub_folder(found, tmp_path / "out", repository="me/my-clip")
    assert written.tower.other_captions == []
    assert written.tower.lines()[1:] == []
    assert artifacts.read_manifest(tmp_path / "out")["model"]["license"].endswith(
        " (base model), apache-2.0 (language model)"
    )
    assert not (tmp_path / "out/language").exists()
    loaded = model.load(tmp_path / "out")
    assert not isinstance(loaded, model.JoinedClip)
    assert row_difference(features(loaded), features(found.clip)) < 1e-6
    text_config = loaded.config["model_cfg"]["text_cfg"]
    assert text_config["hf_model_name"] == text_config["hf_tokenizer_name"] == "me/my-clip"
    text = (tmp_path / "out/README.md").read_text()
    assert 'open_clip.create_model_and_transforms("hf-hub:me/my-clip")' in text
    assert "That of the language model: apache-2.0." in text
    assert loaded.facts["weights_digest"] in text


def test_captions_that_open_clip_reads_otherwise_are_counted(project, tmp_path, monkeypatch):
    monkeypatch.setattr(export.Subject, "captions", ["a cat", "a cat &amp; a dog"])
    found = holding(tmp_path / "made", kind="bert")
    written = hub.write_hub_folder(found, tmp_path / "out")
    said = "1 of 2 captions get other token ids in open_clip, such as 'a cat &amp; a dog'"
    assert written.tower.lines()[1:] == [f"tokens:  {said}"]
    assert said in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hub", "--mix", "0.5", "--to", "out"), "--mix: a language model reads the refined model's texts"),
        (("transformers", "--to", "out"), "cannot hold the text side, a language model with an adapter; use"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(project, arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize("name", KINDS)
def test_the_served_model_gives_the_features(name, tmp_path):
    """By the script that runs without this package; texts of several lengths in one batch."""
    from mlflow.exceptions import MlflowException

    kind, options = KINDS[name]
    clip = model.load(write_tiny_joined(tmp_path / "clip", kind, **options))
    texts, served = without_package.reading(clip), ServedClip()
    served.load_context(
        types.SimpleNamespace(model_config={"texts": texts}, artifacts={"clip": str(tmp_path / "clip")})
    )
    assert row_difference(served.embed_texts(TEXTS), features(clip)) < 1e-5
    photo = Image.linear_gradient("L").resize((40, 48)).convert("RGB")
    with torch.no_grad():
        expected = clip.module.encode_image(clip.preprocess(photo)[None])
        assert row_difference(served.model.encode_image(served.preprocess(photo)[None]), expected) < 1e-5
    assert torch.equal(served.model.logit_scale.exp(), clip.logit_scale)
    if kind == "llama":  # as in the pipeline: its special token is not pooled
        with pytest.raises(UserError, match="gives no token"):
            clip.tokenize([""])
        with pytest.raises(MlflowException, match="gives no token"):
            served.embed_texts(["a", ""])
    else:
        assert row_difference(served.embed_texts([""]), features(clip, [""])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "bert"])
def test_mlflow_s_model_is_scored_again_and_needs_transformers(kind, joined_project, tmp_path):
    import mlflow

    folder = shutil.copytree(joined_project, tmp_path / "tracked")
    shutil.copyfile(empty_store(), folder / "mlflow.db")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("mode: disabled", "mode: required"))
    with inside(folder):
        found = holding(tmp_path / "made", kind=kind) if kind else subject()
        made = mlflow_model.log_model(found, mlflow_model.open_store(Path("params.yaml")), name="tiny")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        served = mlflow.pyfunc.load_model(made.address)
        mlflow.set_tracking_uri(None)
        answer = served.predict(pd.DataFrame({"text": TEXTS}), params={"normalize": False})
    assert row_difference(torch.tensor(answer["text_embedding"].tolist()), features(found.clip)) < 1e-5
    assert any(line.startswith("transformers==") for line in mlflow_model.requirements(found))


@pytest.mark.slow
def test_onnx_has_the_image_tower_and_the_adapter(project, tmp_path):
    import onnxruntime

    found = subject()
    facts = onnx_towers.write_onnx(found, tmp_path / "out", normalize=True)
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {"image.onnx", "adapter.onnx"}
    clip = model.load(Path("data/refined"))
    with torch.no_grad():
        given = clip.language().encode(clip.tokenize(TEXTS))
    session = onnxruntime.InferenceSession(tmp_path / "out/adapter.onnx")
    for count in (1, 3):
        found = session.run(["features"], {facts["towers"]["adapter"]["input"]: given[:count].numpy()})[0]
        expected = torch.nn.functional.normalize(features(clip, TEXTS[:count]), dim=-1)
        assert row_difference(torch.from_numpy(found), expected) < 1e-4
    manifest = artifacts.read_manifest(tmp_path / "out", stage="export")
    assert manifest["model"]["language"]["weights_digest"] == clip.facts["language"]["weights_digest"]


def test_the_bases_logit_scale_is_known_where_its_weights_are_no_end_of_a_mix(joined_project, monkeypatch):
    """The calibration error at that scale stands beside the one at the scale that was trained."""
    monkeypatch.chdir(joined_project)
    opened = open_model("refined", config.load(Path("params.yaml"), Paths), torch.device("cpu"))
    assert opened.base_weights is None
    assert opened.base_scale == pytest.approx(model.load(Path("data/base")).logit_scale.item())
