"""The default at a small size, through all stages: it makes the model better with true captions, and only with them."""

import shutil
from dataclasses import replace

import pytest
import yaml

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.report import verdict
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.sources import scenes
from tests import small_sets
from tests.conftest import run_stage
from tests.tiny_project import ROOT, change

SMALL = {
    "data.evaluation": {},
    "base.demo.epochs": 20,
    "shard.samples_per_shard": 64,
    "base.demo.image_size": 64,
    "evaluate.bootstrap_samples": 100,
    "evaluate.wise_ft": [],
    "runtime.device": "cpu",
    "runtime.progress": False,
    "tracking.mode": "disabled",
}


def write_params(folder, **values):
    params = change(config.read_params(ROOT / "params.yaml"), SMALL)
    params = change(params, {key.replace("__", "."): value for key, value in values.items()})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False).replace("1e-", "1.0e-"))


def refined(folder, monkeypatch, **values):
    """The headlines' verdicts by label and the report's first sentence, after refinement and all that follows it."""
    write_params(folder, **values)
    for name in ("shard", "cache_teacher", "refine", "evaluate", "report"):
        run_stage(name, folder)
    with monkeypatch.context() as inside:
        inside.chdir(folder)
        inputs = read_inputs(folder / "params.yaml")
        moved = {row.before.label: row.verdict for row in inputs.comparison if row.adjusted_p is not None}
        return moved, verdict.sentence(inputs)


def with_captions_of_others(draw_part):
    """`scenes.draw_part`, but in part `refine` each image has the captions of the next one."""

    def shifted(part, *arguments):
        samples = list(draw_part(part, *arguments))
        if part != "refine":
            return iter(samples)
        others = [*samples[1:], samples[0]]
        return (replace(one, captions=other.captions) for one, other in zip(samples, others, strict=True))

    return shifted


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Few scenes and the base that their noisy part makes."""
    folder = tmp_path_factory.mktemp("default")
    small_sets.openmoji(folder / "data/openmoji", base=1000, refine=512, val=64, eval=250)
    (folder / "data/evaluation").mkdir()
    write_params(folder)
    run_stage("base", folder)
    return folder


@pytest.mark.slow
def test_true_captions_make_it_better(project, monkeypatch):
    moved, sentence = refined(project, monkeypatch)
    assert moved == {"image → text log rank": "rose", "text → image log rank": "rose"}
    assert sentence == "Better: all 2 headlines rose."


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["clip_refine", "contrastive"])
def test_captions_of_other_images_gain_nothing(project, monkeypatch, recipe):
    with monkeypatch.context() as inside:
        inside.setattr(scenes, "draw_part", with_captions_of_others(scenes.draw_part))
        moved, sentence = refined(project, monkeypatch, refine__recipe=recipe)
    assert "rose" not in moved.values(), sentence


@pytest.mark.slow
def test_a_copy_of_the_base_is_caught(project, monkeypatch):
    moved, sentence = refined(project, monkeypatch, refine__learning_rate=0.0, refine__max_steps=1)
    assert set(moved.values()) == {"still"}
    assert sentence == "No change: the refined model is the base, weight by weight."
    shutil.rmtree(project / "data/refined")
    shutil.copytree(project / "data/base", project / "data/refined")
    with pytest.raises(UserError, match=r"data/refined.*refine"):
        run_stage("evaluate", project)
