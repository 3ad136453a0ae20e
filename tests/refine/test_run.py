"""The stage's result loads back and says what it came from; other parameters, inputs or code resume nothing."""

import json
import shutil

import open_clip
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts, config, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.refine import run as refine
from tests.cached_project import open_cached
from tests.conftest import run_stage
from tests.refine.runs import QUIET, history, interrupt_at, refined
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import write_params


def test_history_and_result(cached):
    """The loss of the first step is that of the untouched model; the result loads with plain open_clip."""
    refined(cached, refine__epochs=2)
    part, clip, _ = open_cached(cached)
    rows = history(cached)
    assert [row["step"] for row in rows] == list(range(len(part) // 8 * 2))
    assert all(row["loss"] == pytest.approx(row["rafa_loss"] + row["hycd_loss"]) for row in rows)
    assert rows[-1]["epoch"] == 1
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{cached / 'data/refined'}")
    plain.eval()
    mine = model.load(cached / "data/refined")
    inputs = part.read_inputs([0, 1], [0, 0])
    with torch.inference_mode():
        images = mine.normalize(inputs.images)
        expected = plain.encode_image(images)
        assert torch.equal(mine.module.encode_image(images), expected)
        torch.testing.assert_close(mine.encode_image(inputs.images), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(clip.module.encode_image(images), expected)
    manifest = artifacts.read_manifest(cached / "data/refined", stage="refine")
    assert manifest["model"]["refined_from"] == clip.facts["weights_digest"]
    assert manifest["model"]["weights_digest"] == mine.facts["weights_digest"] != clip.facts["weights_digest"]
    assert mine.facts["logit_scale"] == clip.facts["logit_scale"]  # frozen by default
    before, after = (
        {n: p.detach() for n, p in c.module.named_parameters() if n != "logit_scale"} for c in (clip, mine)
    )
    moved, norm = (
        torch.cat([p.flatten() for p in ps]).double().norm()
        for ps in ([after[n].double() - before[n].double() for n in before], list(before.values()))
    )
    assert manifest["weight_displacement"] == pytest.approx(float(moved / norm), rel=1e-6)
    params = config.read_params(cached / "params.yaml")
    made_with = {key: value for key, value in params["refine"].items() if key != "step0_tolerance"}
    assert manifest["parameters"]["refine"] == made_with
    assert manifest["parameters"]["recipes"] == {"clip_refine": params["recipes"]["clip_refine"]}
    teacher = {key: params["cache_teacher"][key] for key in refine.DECIDE_TEACHER}
    assert manifest["parameters"]["cache_teacher"] == teacher
    trained_on = [
        json.loads(line)["key"] for line in (cached / "data/refined/trained_on.jsonl").read_text().splitlines()
    ]
    assert trained_on == [part.entry(row)[1].key for row in range(len(part))]
    assert artifacts.verify(cached / "data/refined") == []


@pytest.mark.parametrize(
    "change",
    [
        {"refine__learning_rate": 2e-3},
        {"refine__recipe": "hycd"},
        {"refine__seed": 1},
        {"recipes__clip_refine__alpha": 0.4},
    ],
)
def test_another_configuration_never_resumes_an_old_checkpoint(cached, monkeypatch, caplog, change):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    with caplog.at_level("INFO"):
        refined(cached, **QUIET, **change)
    assert "resumed" not in caplog.text
    assert len(history(cached)) >= 5


def test_another_input_or_code_version_never_resumes_an_old_checkpoint(cached, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(runtime.Stopped):
            refined(cached, **QUIET)
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr("pipeline_lib.core.provenance.stage_digest", lambda _: "other")
        run_stage("refine", cached)
    assert "resumed" not in caplog.text
    shutil.rmtree(cached / "clip")
    write_tiny_clip(cached / "clip", seed=5)
    for name in ("base", "shard", "cache_teacher", "refine"):
        run_stage(name, cached)
    assert "resumed" not in caplog.text


def test_a_disk_without_room_for_the_result_is_refused_before_the_first_step(cached, monkeypatch):
    usage = shutil.disk_usage(cached)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    write_params(cached)
    with pytest.raises(UserError, match=r"^\.checkpoints/refine-\w+: 0\.\d+ GB will be needed there, 0\.00 are free"):
        run_stage("refine", cached)
    assert not (cached / "data/refined").exists()
