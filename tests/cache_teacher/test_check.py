"""A teacher whose features mean nothing is refused, and rows that are not the teacher's are noticed."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch

from pipeline_lib.cache_teacher import check
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import config, shards
from pipeline_lib.core.errors import UserError
from tests.cached_project import open_cached
from tests.conftest import run_stage
from tests.small_sets import image_file, write
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import make_project, write_params


@pytest.mark.parametrize(
    ("harm", "dtype", "message"),
    [
        (0.0, "float32", "16 of 16 are zero"),
        (float("nan"), "float32", "16 of 16 are not finite"),
        (1e6, "float16", "16 of 16 are not finite"),
    ],
)
def test_a_teacher_that_gives_constants_or_nan_is_refused(sharded, harm, dtype, message):
    """A released cache generator of another project writes empties in silence; here nothing useless is written.

    What is checked is what is stored: halves end at 65,504.
    """
    path = write_tiny_clip(sharded / "teacher") / "open_clip_model.safetensors"
    weights = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    weights["visual.proj"] *= harm
    safetensors.torch.save_file(weights, path)
    write_params(sharded, cache_teacher__teacher="teacher", cache_teacher__dtype=dtype)
    with pytest.raises(UserError, match=message):
        run_stage("cache_teacher", sharded)
    assert not (sharded / "data/teacher").exists()


def test_a_shard_of_equal_captions_is_cached_and_a_part_of_equal_features_is_not(cached):
    """The tail of an image folder whose classes differ in size has one class, and so one caption, per shard."""
    part, _, _ = open_cached(cached)
    units = [{key: value.clone() for key, value in unit.items()} for unit in part.units]
    units[0]["text_features"][:] = units[0]["text_features"][:1]
    check.check_unit(units[0], "refine/00000")
    check.check_spread(units, "refine")
    for unit in units:
        unit["text_features"][:] = units[0]["text_features"][:1]
    count = sum(len(unit["text_features"]) for unit in units)
    with pytest.raises(UserError, match=rf"^refine: one and the same vector for all {count} text_features"):
        check.check_spread(units, "refine")


def test_an_image_folder_with_a_large_class_passes_through_the_cache(tmp_path):
    """Classes of 40, 4 and 4 images, 8 samples a shard: all but the first are of one class."""
    make_project(tmp_path)
    shutil.rmtree(tmp_path / "set")
    for label, (name, count) in enumerate((("cat", 40), ("dog", 4), ("owl", 4))):
        for number in range(count):
            write(tmp_path / "set" / name / f"{number}.png", image_file(100 * label + number, "PNG"))
    parts = {"refine": 0.7, "val": 0.1, "eval": 0.2}
    write_params(
        tmp_path, data__format="image_folder", data__annotations=None, data__parts=parts, shard__samples_per_shard=8
    )
    for stage in ("base", "shard", "cache_teacher"):
        run_stage(stage, tmp_path)
    captions = [
        {text for e in s.samples() for text in e.captions}
        for s in shards.read_part(tmp_path / "data/shards/refine").shards
    ]
    assert {"a photo of a cat"} in captions, "a shard of one caption, which is what this test is about"


def test_a_teacher_with_one_vector_for_all_texts_is_refused(sharded):
    path = write_tiny_clip(sharded / "teacher") / "open_clip_model.safetensors"
    weights = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    weights["ln_final.weight"].zero_()
    weights["ln_final.bias"].fill_(1.0)
    safetensors.torch.save_file(weights, path)
    write_params(sharded, cache_teacher__teacher="teacher")
    with pytest.raises(UserError, match=r"^refine: one and the same vector for all \d+ text_features; check"):
        run_stage("cache_teacher", sharded)


def test_few_rows_are_computed_again_however_large_the_set(cached, monkeypatch):
    part, clip, _ = open_cached(cached)
    settings = replace(config.load(cached / "params.yaml", CacheTeacherSettings), verify_share=1.0, chunk_size=8)
    assert check.verify(part, clip, settings)["rows"] == len(part)
    monkeypatch.setattr(check, "MOST_ROWS", 20)
    assert check.verify(part, clip, settings)["rows"] == 20


def test_verify_notices_features_that_are_not_the_teachers(cached):
    part, clip, _ = open_cached(cached)
    settings = config.load(cached / "params.yaml", CacheTeacherSettings)
    found = check.verify(part, clip, settings)
    assert found["features"] == found["loss"] == found["gradient"] == 0.0
    part.units = [{k: v.clone() for k, v in unit.items()} for unit in part.units]
    for unit in part.units:
        unit["image_features"] *= 1.001
    with pytest.raises(UserError, match=r"recomputed features differ by 1.00e-03"):
        check.verify(part, clip, replace(settings, verify_share=1.0))
    for unit in part.units:
        unit["image_features"] *= 1.00001 / 1.001
    check.verify(part, clip, replace(settings, verify_share=1.0))
    with pytest.raises(UserError, match=r"recomputed features differ by .*, more than 0e\+00"):
        check.verify(part, clip, replace(settings, verify_share=1.0, verify_tolerance=0.0))
    for unit in part.units:
        unit["image_features"] *= 1.001 / 1.00001
    found = check.verify(part, clip, replace(settings, verify_share=1.0, verify_tolerance=2e-3))
    assert found["features"] == pytest.approx(1e-3, rel=1e-3)


def test_too_many_undecodable_images_fail_the_stage(cached):
    """Pixels that stop decoding after `shard` saw them: the stage names them and the limit."""
    part, _, _ = open_cached(cached)
    faults = [f"{part.entry(row)[1].key}: cannot be decoded" for row in range(3)]
    with pytest.raises(UserError, match=r"3 of \d+ images cannot be decoded.*raise cache_teacher.max_bad_share"):
        check.check_share(part.part, faults, 0.01)
    check.check_share(part.part, faults, 0.5)
