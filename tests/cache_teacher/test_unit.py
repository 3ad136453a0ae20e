"""A unit is finished if its record is there and its files are what the record says."""

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.run import units_of
from pipeline_lib.cache_teacher.unit import Unit, group_units, identity_digests
from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.shards import IndexEntry


@pytest.fixture
def unit(sharded) -> Unit:
    """The first one of part `refine`, saved with pixels."""
    parts = [shards.read_part(sharded / "data/shards/refine")]
    first = units_of(parts, sharded / "work", model.load(sharded / "data/base"), stores_pixels=True)["refine"][0]
    pixels = first.pixels_path(first.read_entries())
    artifacts.write_bytes(pixels, b"pixels")
    first.save({"valid": torch.tensor([1, 0]), "token_ids": torch.zeros(5, 3)}, ["", "b: broken"], pixels)
    return first


def test_its_files_lie_in_the_work_folder(unit):
    """The names are those of the cache, and of an interrupted run."""
    relative = [path.relative_to(unit.work).as_posix() for path in (unit.content_path, unit.record_path)]
    assert relative == ["teacher/refine/00000.safetensors", "done/refine/00000.json"]
    assert unit.tokens_path == unit.work / "tokens/refine/00000.safetensors"
    assert unit.read_record() == {
        "shard": unit.shard.sha256,
        "sha256": artifacts.sha256_file(unit.content_path),
        "num_samples": 2,
        "num_captions": 5,
        "invalid": ["b: broken"],
        "pixels": {unit.pixels_path(unit.read_entries()).name: artifacts.sha256_bytes(b"pixels")},
    }


def test_it_is_finished_with_its_record_only(unit):
    assert unit.is_finished()
    unit.record_path.unlink()
    assert not unit.is_finished()


@pytest.mark.parametrize("which", ["content", "pixels"])
@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_it_is_not_finished_where_a_file_was_changed_or_lost(unit, which, harm):
    harm(unit.content_path if which == "content" else unit.pixels_path(unit.read_entries()))
    assert not unit.is_finished()


def test_pixels_count_only_where_they_are_stored(unit):
    """A unit of a run that stored none is made again by one that does."""
    without = Unit(unit.part, unit.index, unit.work, unit.preprocess, stores_pixels=False)
    unit.pixels_path(unit.read_entries()).unlink()
    assert without.is_finished()
    without.save({"valid": torch.zeros(1), "token_ids": torch.zeros(1, 1)}, [""], None)
    assert without.is_finished()
    assert not unit.is_finished()


def test_identity_is_a_digest_of_each_key_and_each_caption():
    entries = [IndexEntry(key, key, 0, 1, "", captions, {}) for key, captions in (("a", ("x", "y")), ("b", ("x",)))]
    found = identity_digests(entries)
    assert [bytes(row) for row in found["key_digests"].tolist()] == [shards.text_digest(key) for key in "ab"]
    assert [bytes(row) for row in found["caption_digests"].tolist()] == [shards.text_digest(text) for text in "xyx"]


@pytest.mark.parametrize(
    ("num_images", "sizes"), [(1, [1] * 6), (16, [1] * 6), (17, [2, 2, 2]), (48, [3, 3]), (64, [4, 2]), (1000, [6])]
)
def test_groups_are_neighbours_with_enough_images(unit, num_images, sizes):
    """Six units of 16 images: in order, none left out, only the last group with fewer than are asked for."""
    units = [Unit(unit.part, 0, unit.work, unit.preprocess, stores_pixels=False) for _ in range(6)]
    groups = group_units(units, num_images)
    assert [len(group) for group in groups] == sizes
    assert [id(one) for group in groups for one in group] == [*map(id, units)]
