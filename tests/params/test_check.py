"""A mistake anywhere in params.yaml is refused by the first stage, before anything is made."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.ablations import CHANGES
from pipeline_lib.params.check import check_params
from tests.conftest import run_stage
from tests.tiny_project import STAGES

ROOT = Path(__file__).parents[2]
WHOLE_FILES = [ROOT / "params.yaml", *sorted({*(ROOT / "ablations").glob("*.yaml")} - {ROOT / CHANGES})]


def write(tmp_path, section, **values):
    params = config.read_params(ROOT / "params.yaml")
    params[section] |= values
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False).replace("1e-", "1.0e-").replace("5e-", "5.0e-"))
    return path


def shifts(**shift_of):
    return {name: {"format": "image_folder", "path": name, "shift_of": of} for name, of in shift_of.items()}


@pytest.mark.parametrize("path", WHOLE_FILES, ids=lambda p: p.stem)
def test_the_projects_own_params_pass(path):
    check_params(path)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("report", {"num_examples": -1}, "report.num_examples: -1 is out of range"),
        ("evaluate", {"bootstrap_samples": 0}, "evaluate.bootstrap_samples: 0 is out of range"),
        ("evaluate", {"prompt": "a photo"}, "evaluate.prompt: 'a photo' must hold {} once, for the class name"),
        ("data", {"parts": {"train": 0.5, "val": 0.1, "eval": 0.2}}, "data.parts.refine: missing; training takes the part of this name, and there are only train, val, eval"),  # noqa: E501
        ("data", {"parts": {"refine": 0, "val": 0.1, "eval": 0.2}}, "data.parts.refine: missing"),
        ("data", {"parts": {"refine": 0.5, "eval": 0.2}}, "evaluate.selection: there is no part or set `val`; name one that none is trained on: eval"),  # noqa: E501
        ("evaluate", {"selection": "refine"}, "evaluate.selection: models are trained on `refine`; name one that none is trained on: val, eval"),  # noqa: E501
        ("data", {"parts": {"base": 0.4, "refine": 0.5, "val": 0.1}, "evaluation": {}}, "data.parts: nothing to evaluate on"),  # noqa: E501
        ("data", {"evaluation": shifts(r="imagenet")}, "data.evaluation.r.shift_of: no other evaluated set or part is called `imagenet`; there are eval"),  # noqa: E501
        ("data", {"evaluation": shifts(r="r")}, "data.evaluation.r.shift_of: no other evaluated set or part is called `r`"),  # noqa: E501
        ("data", {"evaluation_root": "data"}, "data.evaluation_root: `data` holds paths.base (`data/base`), which a stage writes"),  # noqa: E501
        ("data", {"root": "./data/shards/"}, "data.root: `data/shards` holds paths.shards (`data/shards`)"),
        ("data", {"evaluation": shifts(r="val")}, "data.evaluation.r.shift_of: no other evaluated set or part is called `val`"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(tmp_path, section, values, message):
    path = write(tmp_path, section, **values)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}"):
        check_params(path)


def test_a_prior_of_the_teacher_needs_one_whose_statistics_are_stored(tmp_path):
    path = write(tmp_path, "cache_teacher", mode="online")
    check_params(path)
    params = config.read_params(path)
    params["recipes"]["clip_refine"]["prior"]["kind"] = "teacher"
    path.write_text(yaml.safe_dump(params, sort_keys=False).replace("1e-", "1.0e-").replace("5e-", "5.0e-"))
    with pytest.raises(UserError, match=r"recipes.clip_refine.prior.kind: `teacher` needs .*mode `cached`"):
        check_params(path)
    path.write_text(path.read_text().replace("mode: online", "mode: cached"))
    check_params(path)


def test_an_evaluation_set_is_enough_to_evaluate_on(tmp_path):
    parts = {"parts": {"refine": 0.9, "val": 0.1}, "evaluation": {"cifar": {"format": "clip_benchmark", "path": "c"}}}
    check_params(write(tmp_path, "data", **parts))


def test_a_shift_of_a_set_or_of_a_part(tmp_path):
    check_params(write(tmp_path, "data", evaluation=shifts(imagenet=None, r="imagenet", sketch="imagenet", x="eval")))


def test_the_set_on_which_choices_are_made_is_no_shift(tmp_path):
    path = write(tmp_path, "data", evaluation=shifts(r="eval"))
    path.write_text(path.read_text().replace("selection: val", "selection: r"))
    with pytest.raises(UserError, match=r"data.evaluation.r.shift_of: choices are made on this set"):
        check_params(path)


@pytest.mark.parametrize("text", ["refin:\n  recipe: hycd\n", "refin: {}\n"])
def test_an_unknown_section_is_named(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text() + text)
    with pytest.raises(UserError, match=re.escape(f"{path}: unknown section `refin`; did you mean `refine`?")):
        check_params(path)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_asks_before_it_does_anything(tmp_path, stage):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + "evalute: {}\n")
    with pytest.raises(UserError, match=r"unknown section `evalute`; did you mean `evaluate`\?$"):
        run_stage(stage, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
