"""Evaluated images that nearly repeat a trained one: found by features, named by key, refused above a share."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.report import near_duplicates, verdict
from pipeline_lib.report import run as report
from tests import example_results
from tests.cached_project import rewrite_manifest

NEAR = {
    3: ("refine", 7),
    40: ("val", 21),
    41: ("refine", 9),
}  # row of an evaluated image: part and row of a trained one
BROKEN = 30  # row of a trained image that does not decode, though its features would fit


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_the_nearest_are_those_of_a_loop_over_all_pairs(monkeypatch, block):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    noise = np.random.default_rng(0).normal(size=(31, 5)).astype(np.float32)
    rows = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    evaluated, units = rows[:9], [rows[9:9], rows[9:20], rows[20:]]
    cosine, row = near_duplicates.nearest(evaluated, iter(units))
    for one, found, at in zip(evaluated, cosine, row, strict=True):
        cosines = [sum(float(a) * float(b) for a, b in zip(one, other, strict=True)) for other in rows[9:]]
        assert at == int(np.argmax(cosines))
        assert found == pytest.approx(max(cosines), abs=1e-6)


def fill_cache(root, *, mode="cached", teacher="base"):
    """Features of `refine` and `val` far from those of the evaluated images, but for the rows of `NEAR`."""
    cache, facts = root / "data/teacher", {}
    of_eval = safetensors.numpy.load_file(root / "data/eval/base/features/eval.safetensors")["raw_image_features"]
    generator = np.random.default_rng(1)
    example_results.write_part(root / "data/shards/refine", 50, with_captions=True, with_task=False)
    for part in map(shards.read_part, (root / "data/shards/refine", root / "data/shards/val")):
        features = 3 * generator.normal(size=(part.num_samples, of_eval.shape[1])) + 40  # all of them point one way
        valid = np.ones(part.num_samples, np.uint8)
        for evaluated, (name, row) in NEAR.items():
            if name == part.name:
                features[row] = of_eval[evaluated] + 0.01 * generator.normal(size=of_eval.shape[1])
        if part.name == "refine":
            features[BROKEN], valid[BROKEN] = of_eval[0], 0
        unit = {"image_features": 2 * features.astype(np.float32), "valid": valid}
        artifacts.write_bytes(cache / part.name / "00000.safetensors", safetensors.numpy.save(unit))
        facts[part.name] = {"units": [{"shard": part.shards[0].sha256}]}
    made_with = {"mode": mode, "teacher": {"weights_digest": example_results.digest(teacher)}}
    artifacts.write_manifest(cache, "cache_teacher", parts=facts, fingerprint=made_with)


@pytest.fixture
def root(project, tmp_path):
    return shutil.copytree(project, tmp_path / "project")


def test_near_duplicates_are_counted_and_each_named_with_the_trained_image(root, monkeypatch):
    fill_cache(root)
    inputs = example_results.read_report_inputs(root, monkeypatch)
    report.run(inputs, root / "data/report")
    rows = [json.loads(line) for line in (root / "data/report" / near_duplicates.FILE).read_text().splitlines()]
    assert {(row["set"], row["key"], row["part"], row["trained_key"]) for row in rows} == {
        ("eval", f"{evaluated:04d}", part, f"{row:04d}") for evaluated, (part, row) in NEAR.items()
    }
    assert [row["cosine"] for row in rows] == sorted((row["cosine"] for row in rows), reverse=True)
    assert all(0.95 < row["cosine"] <= 1 for row in rows)
    points = next(block for block in verdict.section(inputs) if block.kind == "points")
    said = [text for text, _ in points.items if "nearly repeat" in text]
    assert len(said) == 1
    assert said[0].startswith("3 images of eval nearly repeat one that was trained on, by features (cosine above 0.95)")


def test_more_than_the_share_allows_are_refused_with_the_nearest_pairs(root, monkeypatch):
    fill_cache(root)
    inputs = example_results.read_report_inputs(root, monkeypatch, max_near_duplicate_share=0.01)
    with pytest.raises(UserError, match=r"3 of the 120 images of `eval` nearly .*\(00\d\d and 00\d\d of \w+: [01]"):
        report.run(inputs, root / "data/report")
    assert not (root / "data/report" / near_duplicates.FILE).exists()


@pytest.mark.parametrize(
    ("cache", "why"),
    [
        ({"mode": "online"}, "the teacher's features are not cached"),
        ({"teacher": "another"}, "the teacher is another model than the base"),
    ],
)
def test_where_features_cannot_be_compared_the_page_says_so(root, monkeypatch, cache, why):
    fill_cache(root, **cache)
    inputs = example_results.read_report_inputs(root, monkeypatch)
    points = next(block for block in verdict.section(inputs) if block.kind == "points")
    [said] = [text for text, _ in points.items if text.startswith("Near duplicates of trained images")]
    assert said.startswith(f"Near duplicates of trained images were not looked for: {why}")


def test_a_cache_of_other_shards_or_one_that_was_changed_is_refused(root, monkeypatch):
    fill_cache(root)
    unit = root / "data/teacher/refine/00000.safetensors"
    unit.write_bytes(unit.read_bytes()[:-1] + b"\x07")
    inputs = example_results.read_report_inputs(root, monkeypatch)
    with pytest.raises(UserError, match=r"refine/00000\.safetensors"):
        _ = inputs.near_duplicates
    shutil.rmtree(root / "data/shards/refine")
    example_results.write_part(root / "data/shards/refine", 51, with_captions=True, with_task=False)
    rewrite_manifest(root / "data/teacher")
    with pytest.raises(UserError, match="made from another shard than"):
        _ = inputs.near_duplicates
