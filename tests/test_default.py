"""The default at a small size, through all stages: it makes the model better."""

import pytest
import yaml

from pipeline_lib.core import config
from pipeline_lib.report import verdict
from pipeline_lib.report.inputs import read_inputs
from tests import small_sets
from tests.conftest import run_stage
from tests.tiny_project import ROOT, change

SMALL = {
    "data.evaluation": {},
    "base.demo.epochs": 20,
    "shard.samples_per_shard": 64,
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


@pytest.mark.slow
def test_true_captions_make_it_better(tmp_path, monkeypatch):
    small_sets.openmoji(tmp_path / "data/openmoji", base=1200, refine=640, val=64, eval=300)
    (tmp_path / "data/evaluation").mkdir()
    write_params(tmp_path)
    run_stage("base", tmp_path)
    moved, sentence = refined(tmp_path, monkeypatch)
    assert moved == {"image → text log rank": "rose", "text → image log rank": "rose"}
    assert sentence == "Better: all 2 headlines rose."
