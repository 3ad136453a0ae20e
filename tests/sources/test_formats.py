"""Every format is in every list of formats, and the block of its docstring opens a set of its layout."""

import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pipeline_lib.core import config, schema
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.formats import FORMATS, open_evaluation_set, open_source
from pipeline_lib.sources.openmoji_concepts import find_concepts
from pipeline_lib.sources.parts import split
from pipeline_lib.sources.settings import DataSettings, EvaluationSet
from tests.small_sets import (
    assert_refused,
    clip_benchmark,
    coco,
    docci,
    flickr,
    hugging_face,
    image_folder,
    img2dataset,
    jsonl,
    open_for_evaluation,
    openmoji,
    sharegpt4v,
    sugarcrepe,
    urban1k,
    winoground,
    xm3600,
)

ROOT = Path(__file__).parents[2]
ROWS = [{"image": f"photos/{n}.jpg", "captions": [f"caption {n}"]} for n in range(6)]
SETS = {
    "scenes": openmoji,
    "openmoji": openmoji,
    "coco": lambda folder: coco(folder, split="train2017"),
    "flickr": flickr,
    "jsonl": lambda folder: jsonl(folder, ROWS),
    "hugging_face": hugging_face,
    "image_folder": image_folder,
    "webdataset": img2dataset,
    "clip_benchmark": clip_benchmark,
    "caption_choice": sugarcrepe,
    "image_pairs": winoground,
    "docci": docci,
    "sharegpt4v": sharegpt4v,
    "urban1k": urban1k,
    "xm3600": xm3600,
}
EVALUATED_ONLY = ("caption_choice", "clip_benchmark", "image_pairs", "openmoji", "urban1k", "xm3600")


def block_to_paste(name: str) -> dict:
    """The section `data` that the docstring of a format shows."""
    docstring = sys.modules[FORMATS[name].__module__].__doc__
    [block] = re.findall(r"^    data:\n(?:      .*\n)+", docstring, re.MULTILINE)
    return config.parse_yaml(textwrap.dedent(block), name)["data"]


def formats_of(kind: type) -> set[str]:
    return set(get_args(get_type_hints(kind)["format"]))


def test_the_settings_offer_the_formats_that_there_are():
    assert formats_of(DataSettings) | formats_of(EvaluationSet) == set(FORMATS) == set(SETS)
    assert {name: function.__module__.rpartition(".")[2] for name, function in FORMATS.items()} == {n: n for n in SETS}


@pytest.mark.parametrize("name", sorted(formats_of(DataSettings)))
def test_a_pasted_block_opens_the_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = schema.build(DataSettings, block_to_paste(name), "data")
    assert section.format == name
    SETS[name](Path(section.root))
    source = open_source(section)
    parts = split(source.samples, section.parts)
    assert sum(map(len, parts.values())) == len(list(source.samples)) >= 6
    assert all(sample.captions for samples in parts.values() for sample in samples)
    assert next(iter(source.samples)).image.read()
    assert source.facts["format"] == name


@pytest.mark.parametrize("name", EVALUATED_ONLY)
def test_a_pasted_block_of_evaluation_sets_opens_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(EVALUATED_ONLY) == formats_of(EvaluationSet) - formats_of(DataSettings)
    rest = config.raw_section(ROOT / "params.yaml", "data")
    section = schema.build(DataSettings, {**rest, **block_to_paste(name)}, "data")
    for each, chosen in section.evaluation.items():
        folder = Path(section.evaluation_root, chosen.path)
        shutil.rmtree(folder, ignore_errors=True)
        SETS[name](folder)
        if name == "clip_benchmark":  # the other split is not read
            (folder / "test").rename(folder / (chosen.split or "test"))
        source = open_evaluation_set(section, each)
        concepts = len(find_concepts()[0])
        expected = {"clip_benchmark": 12, "caption_choice": 6, "image_pairs": 10, "openmoji": concepts}
        expected |= {"urban1k": 12, "xm3600": 6}
        assert len(list(source.samples)) == expected[name]
        assert bool(source.choices) == (name in ("caption_choice", "image_pairs"))
        assert next(iter(source.samples)).image.read()


@pytest.mark.parametrize("name", sorted(formats_of(EvaluationSet) & formats_of(DataSettings)))
def test_every_other_format_is_an_evaluation_set_too(name, tmp_path):
    source = open_for_evaluation(SETS[name](tmp_path / "set"), name)
    assert source.name == "data.evaluation.s"
    assert len(list(source.samples)) == 6
    assert source.captioned == (name != "image_folder")


def test_a_missing_root(tmp_path):
    message = r"data.root: .*nowhere does not exist; it is relative to the current folder$"
    assert_refused(message, tmp_path / "nowhere", "coco")
    with pytest.raises(UserError, match=r"data.evaluation.s.path: .*nowhere does not exist"):
        open_for_evaluation(tmp_path / "nowhere", "coco")
