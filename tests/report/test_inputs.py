"""What the page is made of must belong together: models, evaluations, shards and params.yaml."""

import json

import pytest
import yaml

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from tests import example_results


def test_other_weights_than_those_evaluated_are_refused(tmp_path, monkeypatch):
    example_results.make_project(tmp_path)
    manifest = json.loads((tmp_path / "data/refined/manifest.json").read_text())
    artifacts.write_manifest(
        tmp_path / "data/refined", "refine", model={**manifest["model"], "weights_digest": "0" * 64}
    )
    with pytest.raises(
        UserError, match="data/eval/refined: evaluated other weights than those of data/refined and its base"
    ):
        example_results.read_report_inputs(tmp_path, monkeypatch)


def test_other_images_than_those_evaluated_are_refused(tmp_path, monkeypatch):
    example_results.make_project(tmp_path)
    path = tmp_path / "data/shards/eval"
    manifest = artifacts.read_manifest(path)
    facts = {key: value for key, value in manifest.items() if key not in {"stage", "files", "digest", "source"}}
    artifacts.write_manifest(path, "shard", **facts, source={"format": "jsonl"})
    with pytest.raises(UserError, match="data/eval/base: `eval` is not what lies in data/shards/eval"):
        example_results.read_report_inputs(tmp_path, monkeypatch)


def flipped(content):
    return bytes([content[0] ^ 1]) + content[1:]


def read_all(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch)
    for evaluation in (inputs.base, inputs.refined):
        evaluation.items("eval")
        evaluation.features("eval")


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("data/eval/base/items/eval.safetensors", "evaluate"),
        ("data/eval/refined/features/eval.safetensors", "evaluate"),
        ("data/refined/history.jsonl", "refine"),
    ],
)
def test_a_file_that_is_damaged_or_gone_is_refused_where_it_is_read(tmp_path, monkeypatch, file, stage):
    example_results.make_project(tmp_path)
    content = (tmp_path / file).read_bytes()
    for damaged in (flipped(content), content[:-1], None):
        if damaged is None:
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{file}: .*; run `dvc repro -f {stage}`"):
            read_all(tmp_path, monkeypatch)


PRIOR = {"kind": "normal", "mean": 0, "std": 1, "shared": True, "decay": "none"}


def change(root, **changes):
    """params.yaml of `root` with other values of `refine`, or of the recipe's block."""
    params = config.read_params(root / "params.yaml")
    for key, value in changes.items():
        block = params["refine"] if key in params["refine"] else params["recipes"]["clip_refine"]
        assert key in block
        block[key] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "refine.seed is 7, was 0"),
        ({"learning_rate": 0.5, "epochs": 3}, "refine.epochs is 3, was 1; refine.learning_rate is 0.5, was 5e-05"),
        ({"betas": [0.9, 0.98]}, r"refine.betas is \[0.9, 0.98\], was \[0.9, 0.999\]"),
        ({"alpha": 0.25}, "recipes.clip_refine.alpha is 0.25, was 0.5"),
        ({"prior": {**PRIOR, "kind": "uniform"}}, "recipes.clip_refine.prior.kind is uniform, was normal"),
        ({"recipe": "hycd"}, "refine.recipe is hycd, was clip_refine"),
    ],
)
def test_parameters_that_did_not_make_the_refined_model_are_refused(tmp_path, monkeypatch, changes, said):
    example_results.make_project(tmp_path)
    change(tmp_path, **changes)
    message = rf"params\.yaml: not what made data/refined: .*{said}; run `dvc repro`"
    with pytest.raises(UserError, match=message):
        example_results.read_report_inputs(tmp_path, monkeypatch)


def test_the_same_parameters_in_another_spelling_are_the_same(tmp_path, monkeypatch):
    example_results.make_project(tmp_path)
    change(tmp_path, rafa_weight=1, alpha=0.50, eps=0.00000001, prior=PRIOR)
    assert (
        example_results.read_report_inputs(tmp_path, monkeypatch).parameters["recipes"]["clip_refine"]["rafa_weight"]
        == 1
    )
