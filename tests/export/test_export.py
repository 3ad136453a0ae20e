"""Exports of a tiny project that ran to its evaluation: each is read back by somebody else's code and compared."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from pipeline_lib import export, model
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import __main__ as command
from pipeline_lib.export import card, hub, mlflow_model, onnx_towers
from pipeline_lib.model.features import l2_normalize
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from tests import tiny_project
from tests.conftest import run_stage
from tests.export.evaluated import WISE_FT, inside, make_evaluated
from tests.tiny_model import write_tiny_hf_clip
from tests.tracked_project import clean_environment, empty_store

__all__ = ["clean_environment"]  # a fixture
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A tiny project with a native text tower, evaluated."""
    return make_evaluated(tmp_path_factory.mktemp("evaluated") / "project")


@pytest.fixture(scope="module")
def hf_evaluated(tmp_path_factory):
    """A tiny project whose text tower is a Hugging Face one, as the default's is."""
    base = write_tiny_hf_clip(tmp_path_factory.mktemp("hf") / "clip", seed=1)
    return make_evaluated(tmp_path_factory.mktemp("hf_evaluated") / "project", model=base)


@pytest.fixture
def project(evaluated):
    with inside(evaluated) as folder:
        yield folder


@pytest.fixture
def tracked(evaluated, tmp_path):
    """A copy with an MLflow store of its own."""
    folder = shutil.copytree(evaluated, tmp_path / "tracked")
    shutil.copyfile(empty_store(), folder / "mlflow.db")
    tiny_project.write_params(folder, evaluate__wise_ft=WISE_FT, tracking__mode="required")
    with inside(folder):
        yield folder


def subject(which="refined", mix=None):
    return export.open_subject(Path("params.yaml"), which, mix)


def weights(folder):
    return load_file(Path(folder) / model.WEIGHTS)


def run(*arguments):
    command.main([str(argument) for argument in arguments])


# ---- the open_clip folder ----

CARD_LINES = """
import sys
assert not any(name.startswith("pipeline_lib") for name in sys.modules)
{lines}
import torch
from PIL import Image
model.eval()
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open({image!r}))[None])
    text = model.encode_text(tokenizer({texts!r}))
torch.save({{"image": image, "text": text}}, {output!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluated", "hf_evaluated"])
def test_the_lines_of_the_card_load_it_with_plain_open_clip_and_no_network(kind, request, tmp_path):
    """The lines are run as they stand, by a Python that knows nothing of this project: from the folder's parent, and
    from the hub, whose files lie in the cache of huggingface_hub as if they had been downloaded.
    """
    with inside(request.getfixturevalue(kind)):
        found = subject()
        hub.write_hub_folder(found, tmp_path / "my-clip", repository="me/my-clip")
        image = tmp_path / "image.png"
        image.write_bytes(found.sample.images[0])
        expected = found.features(found.clip)
    cached = tmp_path / "hub/models--me--my-clip"
    shutil.copytree(tmp_path / "my-clip", cached / "snapshots" / (40 * "0"))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(40 * "0")
    blocks = (tmp_path / "my-clip" / "README.md").read_text().split("```python\n")[1:]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    assert ["hf-hub:" in block for block in blocks] == [True, False]
    for block in blocks:
        output, texts = tmp_path / "features.pt", found.sample.texts
        code = CARD_LINES.format(lines=block.split("```")[0], image=str(image), texts=texts, output=str(output))
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
        plain = torch.load(output, weights_only=True)
        assert torch.allclose(plain["image"], expected["image"][:1], rtol=1e-5, atol=1e-6)
        assert torch.allclose(plain["text"], expected["text"], rtol=1e-5, atol=1e-6)
        output.unlink()


def test_the_folder_holds_the_refined_weights_and_what_the_hub_expects(project, tmp_path):
    run("hub", "--to", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("README.md", "manifest.json", "open_clip_config.json", "open_clip_model.safetensors"),
    }  # fmt: skip
    ours, theirs = weights("data/refined"), weights(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert artifacts.verify(tmp_path / "out") == []
    assert (
        artifacts.read_manifest(tmp_path / "out")["origin"]["outputs"]["refine"]
        == (artifacts.read_manifest(Path("data/refined"))["digest"])
    )


def test_two_exports_are_equal_byte_by_byte(project, tmp_path):
    digests = [hub.write_hub_folder(subject(), tmp_path / name / "clip") for name in ("a", "b")]
    assert digests[0] == digests[1]


def test_a_folder_that_was_changed_on_the_way_to_the_disk_fails_loudly_and_leaves_nothing(
    project, tmp_path, monkeypatch
):
    def save_something_else(state_dict, path):
        name = "visual.proj"
        save({**state_dict, name: state_dict[name] * (1 + 2**-20)}, path)

    save = model.save_weights
    monkeypatch.setattr(model.folder, "save_weights", save_something_else)
    with pytest.raises(RuntimeError, match="differs in weights_digest, image features"):
        hub.write_hub_folder(subject(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_export_is_replaced_and_only_by_force(project, tmp_path, capsys):
    run("hub", "--to", tmp_path / "out")
    for arguments, message in (
        (("hub", "--to", tmp_path / "out"), "pass --force"),
        (("hub", "--to", "data/refined", "--force"), "is no earlier export"),
        (("hub", "--to", ".", "--force"), "is no earlier export"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
    run("hub", "--to", tmp_path / "out", "--force", "--model", "base")
    assert torch.equal(weights(tmp_path / "out")["visual.proj"], weights("data/base")["visual.proj"])


def test_with_a_repository_the_tower_is_looked_up_there(hf_evaluated, tmp_path):
    with inside(hf_evaluated):
        hub.write_hub_folder(subject(), tmp_path / "out", repository="me/my-clip")
    text_config = json.loads((tmp_path / "out" / model.CONFIG).read_text())["model_cfg"]["text_cfg"]
    assert text_config["hf_model_name"] == text_config["hf_tokenizer_name"] == "me/my-clip"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert 'create_model_and_transforms("hf-hub:me/my-clip")' in (tmp_path / "out" / "README.md").read_text()
    model.load(tmp_path / "out")  # by its own files


# ---- mixes ----


def test_a_mix_is_the_interpolation_that_was_evaluated(project, tmp_path):
    hub.write_hub_folder(subject(mix=0.25), tmp_path / "out")
    base, refined, mixed = weights("data/base"), weights("data/refined"), weights(tmp_path / "out")
    for name in mixed:
        expected = 0.75 * base[name].double() + 0.25 * refined[name].double()
        assert torch.allclose(mixed[name].double(), expected, rtol=1e-6, atol=1e-8), name
    assert not torch.equal(mixed["visual.proj"], refined["visual.proj"])


def test_the_card_of_a_mix_carries_the_numbers_of_the_sweep_or_says_that_there_are_none(project):
    rows = json.loads(Path("data/eval/refined/results.json").read_text())["wise_ft"]
    value = next(row for row in rows if row["mix"] == 0.5)["sets"]["eval"]["image_to_text_log_rank"]
    text = card.render_card(subject(mix=0.5), "mix")
    of_eval = text.split("| **eval**")[1].splitlines()
    line = next(line for line in of_eval if line.startswith("| image → text log rank"))
    assert line.split("|")[3].strip() == f"{100 * value:.1f}"
    assert "val (mixes may be chosen here)" in text
    unknown = card.render_card(subject(mix=0.3), "mix")
    assert "**The numbers of this mix were not measured.**" in unknown
    assert "model-index" in text
    assert "model-index" not in unknown


def test_the_card_has_the_headlines_of_choices(chosen):
    with inside(chosen):
        results = yaml.safe_load(card.render_card(subject(), "my-clip").split("---")[1])["model-index"][0]["results"]
        flat = artifacts.read_json(Path("data/eval/refined.json"))
    found = {one["dataset"]["name"]: one for one in results if one["task"]["type"] == "image-text-matching"}
    assert found.keys() == {"crepe", "crepe_pp", "wino", "natural", "mmvp"}
    (metric,) = found["wino"]["metrics"]
    assert (metric["type"], metric["name"]) == ("accuracy", "group score")
    assert metric["value"] == round(100 * flat["wino"]["image_pairs_group_score"], 2)


@pytest.mark.parametrize(
    ("which", "mix", "message"),
    [("refined", 0.0, "--model base"), ("refined", 1.5, "between 0 and 1"), ("base", 0.5, "leave --model away")],
)
def test_a_mix_that_is_none_is_refused(project, which, mix, message):
    with pytest.raises(UserError, match=message):
        subject(which, mix)


def test_a_model_that_was_not_the_evaluated_one_is_refused(evaluated, tmp_path):
    """The card must not carry another model's numbers."""
    with inside(shutil.copytree(evaluated, tmp_path / "changed")):
        shutil.rmtree("data/refined")
        tiny_project.write_params(Path.cwd(), evaluate__wise_ft=WISE_FT, refine__seed=7)
        run_stage("refine", Path.cwd())
        with pytest.raises(UserError, match="evaluated other weights"):
            subject()


def test_a_recipe_rate_or_seed_that_did_not_make_the_weights_is_refused(evaluated, tmp_path):
    """params.yaml was edited after the evaluation, and `dvc repro` was not run."""
    with inside(shutil.copytree(evaluated, tmp_path / "edited")) as folder:
        for changes, said in (
            ({"refine__learning_rate": 0.5, "refine__seed": 7}, "refine.seed is 7, was 0; refine.learning_rate is 0.5"),
            ({"refine__recipe": "hycd"}, "refine.recipe is hycd, was clip_refine"),
            ({"recipes__clip_refine__alpha": 0.25}, "recipes.clip_refine.alpha is 0.25, was 0.5"),
        ):
            tiny_project.write_params(folder, evaluate__wise_ft=WISE_FT, **changes)
            for mix in (None, 0.5):
                with pytest.raises(UserError, match=rf"params\.yaml: .*{said}.*run `dvc repro`"):
                    subject(mix=mix)
        tiny_project.write_params(
            folder, evaluate__wise_ft=WISE_FT, refine__step0_tolerance=0.5, recipes__hycd__alpha=0.25
        )
        card.render_card(subject(mix=0.5), "mix")


# ---- the card ----


def test_the_card_has_the_front_matter_the_table_of_the_report_and_the_provenance(project):
    text = card.render_card(subject(), "my-clip")
    parsed = ModelCard(text)
    assert (parsed.data.library_name, parsed.data.pipeline_tag) == ("open_clip", "zero-shot-image-classification")
    table = report.terminal_table(read_inputs(Path("params.yaml")))
    assert table.splitlines()[0] in text
    row = next(line for line in table.splitlines() if line.startswith("image → text log rank"))
    cells = [cell for cell in row.replace("image → text log rank", "").split("  ") if cell.strip()]
    assert all(cell.strip() in text for cell in cells)
    for folder in ("base", "shards", "teacher", "refined", "eval/base", "eval/refined"):
        assert artifacts.read_manifest(Path("data") / folder)["digest"] in text
    assert artifacts.read_manifest(Path("data/refined"))["model"]["weights_digest"] in text
    assert f"| torch           | {torch.__version__.split('+')[0]}" in text


def test_no_absolute_path_reaches_the_card(evaluated, tmp_path):
    with inside(shutil.copytree(evaluated, tmp_path / "elsewhere")):
        secret = f"{tmp_path}/secret/clip"
        params, record = Path("params.yaml"), Path("data/base.parameters.json")
        params.write_text(params.read_text().replace("path: clip", f"path: {secret}"))
        record.write_text(record.read_text().replace('"path": "clip"', f'"path": "{secret}"'))
        found = subject()
        assert "| `.../clip`" in card.render_card(found, "my-clip")
        assert str(tmp_path) not in card.render_card(found, "my-clip")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Apache-2.0 (both towers)", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("mitochondria", {"license": "other", "license_link": "README.md"}),
        ("see https://huggingface.co/timm/x", {"license": "other", "license_link": "https://huggingface.co/timm/x"}),
    ],
)
def test_the_licence_is_named_as_the_hub_names_it(project, said, expected):
    found = subject()
    found.clip.facts["license"] = said
    assert expected.items() <= card.licence(found).items()


def test_the_base_is_exported_without_claims_about_refinement(project):
    text = card.render_card(subject("base"), "base")
    assert "| percent " in text
    assert "difference" not in text.split("## Data")[0]
    assert "clip-refine\n" not in text.split("# base")[0]


# ---- MLflow ----


@pytest.fixture(scope="module")
def logged(evaluated, tmp_path_factory):
    """The model logged and registered once, in a store where the refine stage has a run: (folder, what was logged)."""
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("logged") / "project")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        os.environ.pop(name, None)
    shutil.copyfile(empty_store(), folder / "mlflow.db")
    tiny_project.write_params(folder, evaluate__wise_ft=WISE_FT, tracking__mode="required")
    run_stage("refine", folder)
    with inside(folder):
        store = mlflow_model.open_store(Path("params.yaml"))
        made = mlflow_model.log_model(subject(), store, name="tiny", alias="candidate")
    return folder, made


@pytest.fixture
def served(logged):
    import mlflow

    folder, _ = logged
    with inside(folder):
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield mlflow.pyfunc.load_model("models:/tiny@candidate")
        mlflow.set_tracking_uri(None)


def draw_image(colour="red", size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def draw_deep_image():
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 30_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def test_scores_equal_torch_directly(served):
    """Against open_clip and torch in this test, not against the exporter's own comparison."""
    module, _, preprocess = open_clip.create_model_and_transforms("local-dir:data/refined")
    tokenizer = open_clip.get_tokenizer("local-dir:data/refined")
    images, texts = [draw_image("red"), draw_image("blue", (33, 90))], ["a red square", "blue"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(image))) for image in images])
        raw = {"image": module.eval().encode_image(pixels), "text": module.encode_text(tokenizer(texts))}
        classes = ["red", "blue", "green"]
        prompts = [module.encode_text(tokenizer([f"a {c}", f"{c} thing"]), normalize=True) for c in classes]
    table = pd.DataFrame({"image": images, "text": texts})
    for normalize in (True, False):
        answer = served.predict(table, params={"normalize": normalize})
        for side, features in raw.items():
            expected = l2_normalize(features) if normalize else features
            assert torch.allclose(torch.tensor(answer[f"{side}_embedding"].tolist()), expected, rtol=1e-5, atol=1e-6)
    directions = l2_normalize(torch.stack([each.mean(dim=0) for each in prompts]))
    expected = (module.logit_scale.exp() * l2_normalize(raw["image"]) @ directions.T).softmax(dim=1).detach()
    answer = served.predict(table[["image"]], params={"classes": classes, "templates": ["a {}", "{} thing"]})
    assert torch.allclose(torch.tensor(answer["probabilities"].tolist()), expected, rtol=1e-4, atol=1e-6)
    assert answer["label"].tolist() == [classes[best] for best in expected.argmax(dim=1)]


def test_rows_may_leave_a_column_empty(served):
    both = served.predict(pd.DataFrame({"image": [draw_image(), None], "text": [None, "a cat"]}))
    alone = served.predict(pd.DataFrame({"text": ["a cat"]}))
    assert both["text_embedding"][0] is None
    assert both["image_embedding"][1] is None
    assert np.allclose(both["text_embedding"][1], alone["text_embedding"][0], atol=1e-6)
    assert list(alone) == ["text_embedding"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("table", "params", "message"),
    [
        ({"image": [b"not an image"]}, {}, "cannot be decoded"),
        ({"image": [draw_image(size=(1, 99000))]}, {}, "1x99000 pixels are too many"),  # small, but it grows
        ({"image": [draw_deep_image()]}, {}, "more than 8 bits"),
        ({"image": [b"P6 12000 9000 255\n"]}, {}, "12000x9000 pixels are too many"),  # a claim is enough
        ({"image": [draw_image()]}, {"classes": ["a"], "templates": ["no place"]}, "needs {} once"),
        ({"text": ["a"]}, {"classes": ["a"]}, "every row needs `image`"),
        ({"text": [None]}, {}, "no `image` and no `text`"),
        ({"image": pd.Series([], dtype=object)}, {}, "no `image` and no `text`"),
        ({"image": pd.Series([], dtype=object)}, {"classes": ["a"]}, "no `image` and no `text`"),
        ({"image": [None]}, {"classes": ["a"]}, "no `image` and no `text`"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(served, table, params, message):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(pd.DataFrame(table), params=params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"  # a server says 400, not 500


def test_the_model_folder_holds_no_pickle_and_says_what_it_needs(logged):
    folder, made = logged
    places = [p for p in (folder / "mlartifacts").rglob("MLmodel") if made.uri.rpartition("/")[2] in str(p)]
    assert len(places) == 1
    names = {p.relative_to(places[0].parent).as_posix() for p in places[0].parent.rglob("*") if p.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]
    assert {"served_model.py", "artifacts/clip/open_clip_model.safetensors", "input_example.json"} <= names
    needed = (places[0].parent / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in needed
    assert all("==" in line for line in needed)
    described = yaml.safe_load(places[0].read_text())
    assert described["metadata"]["weights_digest"] == artifacts.read_manifest(folder / "data/refined")["model"]["weights_digest"]  # noqa: E501  # fmt: skip
    assert "cloudpickle" not in str(described["flavors"]["python_function"].get("python_model"))


def test_the_example_beside_the_model_is_a_request_that_is_answered(served, logged):
    """As MLflow tries it out when the model is logged, and as a person who looks for an example sends it."""
    folder, made = logged
    [place] = (folder / "mlartifacts").rglob(f"*{made.uri.rpartition('/')[2]}*/**/serving_input_example.json")
    request = json.loads(place.read_text())["dataframe_split"]
    answer = served.predict(pd.DataFrame(request["data"], columns=request["columns"]))
    assert np.isfinite([answer[f"{side}_embedding"][0] for side in ("image", "text")]).all()


def test_the_run_hangs_below_the_row_and_names_the_run_that_made_the_weights(logged):
    from mlflow import MlflowClient

    folder, made = logged
    with inside(folder):
        verdict = report.sentence(read_inputs(Path("params.yaml")))
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_run(made.run_id)
    refine = client.get_run(found.data.tags["upstream.refine.run_id"])
    row = client.get_run(found.data.tags["mlflow.parentRunId"])
    assert found.info.status == "FINISHED"
    assert refine.data.tags["stage"] == "refine"
    assert refine.data.tags["mlflow.parentRunId"] == row.info.run_id
    assert made.row == row.info.run_name
    assert [output.model_id for output in row.outputs.model_outputs] == [made.uri.rpartition("/")[2]]
    recall = json.loads((folder / "data/eval/refined.json").read_text())["eval"]["image_to_text_log_rank"]
    assert found.data.metrics["eval/image_to_text_log_rank"] == recall
    version = client.get_model_version_by_alias("tiny", "candidate")
    assert verdict in version.description
    assert (version.version, version.tags["weights_digest"]) == (int(made.version), found.data.tags["weights_digest"])


def test_weights_that_no_run_made_are_logged_by_themselves(tracked):
    store = mlflow_model.open_store(Path("params.yaml"))
    made = mlflow_model.log_model(subject(mix=0.5), store)
    tags = store.run(made.run_id).tags
    assert made.row == ""
    assert "mlflow.parentRunId" not in tags
    assert tags["upstream.refine.run_id"] == "unknown"
    assert store.mlflow.search_registered_models() == []


def test_a_model_that_scores_otherwise_is_not_registered(tracked, monkeypatch):
    """The base's folder is logged in place of the refined one's."""
    write, store = hub.write_hub_folder, mlflow_model.open_store(Path("params.yaml"))
    monkeypatch.setattr(hub, "write_hub_folder", lambda _, target: write(subject("base"), target))
    with pytest.raises(RuntimeError, match="image embeddings differ"):
        mlflow_model.log_model(subject(), store, name="tiny")
    assert store.mlflow.search_registered_models() == []
    assert {run.status for run in store.find({"kind": "export"})} == {"FAILED"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alias", "champion"), "pass --name as well"),
        (("--name", "a/b"), "holds / or :"),
        (("--name", "a", "--alias", "v1"), "not `v1`"),
    ],
)
def test_names_are_checked_before_the_work(project, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run("mlflow", *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_mlflow_serves_it_and_answers_as_torch_does(logged):
    """A real `mlflow models serve` on loopback; the image goes as base64 in JSON."""
    folder, made = logged
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", made.address, "--env-manager", "local"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    with (
        (folder / "serve.log").open("w") as output,
        subprocess.Popen(
            [*serve, "-p", str(port), "-h", "127.0.0.1"],
            cwd=folder.parent,
            env=environment,
            stdout=output,
            stderr=output,
        ) as server,  # fmt: skip
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/ping", server)
            with inside(folder):
                found = subject()
                expected = found.features(found.clip)
            encoded = [base64.b64encode(image).decode() for image in found.sample.images]
            answer = _post(port, {"dataframe_split": {"columns": ["image"], "data": [[image] for image in encoded]}})
            rows = torch.tensor([row["image_embedding"] for row in answer["predictions"]])
            assert torch.allclose(rows, l2_normalize(expected["image"]), rtol=1e-5, atol=1e-6)
            named = _post(
                port,
                {
                    "dataframe_records": [{"image": image} for image in encoded],
                    "params": {"classes": ["circle", "square"], "templates": ["a {}"]},
                },
            )
            assert all(abs(sum(row["probabilities"]) - 1) < 1e-5 for row in named["predictions"])
            others = (
                {"instances": [{"image": image} for image in encoded]},
                {"inputs": {"image": encoded, "text": ["x"] * len(encoded)}},
                {"dataframe_records": [*({"image": image, "text": None} for image in encoded), {"text": "a"}]},
            )
            for body in others:
                again = _post(port, body)["predictions"][: len(encoded)]
                assert torch.equal(torch.tensor([row["image_embedding"] for row in again]), rows)
            for broken in ("bm8gcGljdHVyZQ==", "no base64"):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    _post(port, {"dataframe_records": [{"image": broken}]})
                assert refused.value.code == 400
        finally:
            server.terminate()


def _wait_for(address, server):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not come up")


def _post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


# ---- ONNX ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluated", "hf_evaluated"])
def test_onnx_towers_equal_torch_for_batches_of_one_two_and_five(kind, request, tmp_path):
    """Other images, captions and batch sizes than those that the exporter checked, with a session of our own.

    No file tells where the code lies that made it: torch's exporter writes a trace of it at each node.
    """
    import onnxruntime

    with inside(request.getfixturevalue(kind)):
        found = subject()
        facts = onnx_towers.write_onnx(found, tmp_path / "out")
        clip = model.load(Path("data/refined"))
        token_ids = clip.tokenize(["a", "a red dog", "two", "the hill", "of"])
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    inputs = {"image": clip.normalize(pixels), "text": token_ids}
    with torch.no_grad():
        expected = {"image": clip.encode_image(pixels), "text": clip.encode_text(token_ids)}
    for side, values in inputs.items():
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{side}.onnx")
        for batch in (1, 2, 5):
            answer = session.run(["features"], {facts["towers"][side]["input"]: values[:batch].numpy()})[0]
            difference = (torch.from_numpy(answer) - expected[side][:batch]).abs().max() / expected[side].abs().max()
            assert difference <= 1e-4
    manifest = artifacts.read_manifest(tmp_path / "out", stage="export")
    assert manifest["opset"] >= 17
    places = [str(tmp_path), str(REPOSITORY), sys.prefix, "site-packages", "stack_trace"]
    contents = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert [place for place in places if any(place.encode() in content for content in contents)] == []
    assert manifest["origin"]["weights_digest"] == found.facts["weights_digest"]
    assert artifacts.verify(tmp_path / "out") == []


@pytest.mark.slow
def test_onnx_with_other_weights_fails_loudly(project, tmp_path):
    found = subject()
    tower = onnx_towers.Tower(found.clip, "text", normalize=True).eval()
    token_ids = found.clip.tokenize(found.sample.texts)
    onnx_towers._export(tower, token_ids, tmp_path / "text.onnx")
    assert onnx_towers.check_tower(tower, token_ids, tmp_path / "text.onnx") <= 1e-4
    with torch.no_grad():
        found.clip.module.text_projection.add_(0.01)
    with pytest.raises(RuntimeError, match="differs from torch"):
        onnx_towers.check_tower(tower, token_ids, tmp_path / "text.onnx")


def test_missing_onnx_packages_are_named_with_the_remedy(project, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    find = onnx_towers.importlib.util.find_spec
    monkeypatch.setattr(onnx_towers.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n))
    with pytest.raises(SystemExit):
        run("onnx", "--to", tmp_path / "out")
    assert "onnxscript not installed; run `pip install -e '.[onnx]'`" in capsys.readouterr().err
