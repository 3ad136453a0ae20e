"""Chunks hold every image of every group of units once, in order, as each model preprocesses it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.chunks import decode_ahead, store_pixels
from pipeline_lib.cache_teacher.run import units_of
from pipeline_lib.core import shards


@pytest.fixture
def units(sharded):
    """Those of part `refine`: shards of 16 images."""
    parts = [shards.read_part(sharded / "data/shards/refine")]
    return units_of(parts, sharded / "work", model.load(sharded / "data/base"), stores_pixels=True)["refine"]


def decoded(unit, preprocess):
    """Every image of a unit, one after another."""
    limit = unit.part.max_image_pixels
    return torch.from_numpy(
        np.stack([preprocess.decode(unit.shard.read_image(entry), limit) for entry in unit.read_entries()])
    )


def decoded_group(group, preprocess):
    return torch.cat([decoded(unit, preprocess) for unit in group])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("sizes", "chunks_of"), [((1, 2), [(5, 5, 5, 1), (5,) * 6]), ((3,), [(5,) * 9 + (1,)])])
def test_each_group_comes_with_its_own_images_in_order(units, num_workers, sizes, chunks_of):
    """Chunks of 5 in shards of 16, 16 and 14: they run across the shards of a group and end with it."""
    assert [unit.shard.num_samples for unit in units] == [16, 16, 14]
    student, rest = units[0].preprocess, iter(units)
    groups = [[next(rest) for _ in range(size)] for size in sizes]
    found = [(group, list(chunks)) for group, chunks in decode_ahead(groups, student, 5, num_workers)]
    assert [group for group, _ in found] == groups
    for (group, chunks), expected in zip(found, chunks_of, strict=True):
        assert tuple(len(chunk.student_pixels) for chunk in chunks) == expected
        assert all(chunk.teacher_pixels is chunk.student_pixels and not any(chunk.faults) for chunk in chunks)
        assert torch.equal(torch.cat([chunk.student_pixels for chunk in chunks]), decoded_group(group, student))


def test_a_teacher_that_preprocesses_otherwise_has_pixels_of_its_own(units):
    student = units[0].preprocess
    teacher = replace(student, config={**student.config, "resize_mode": "squash"})
    for [unit], chunks in decode_ahead([units[:1]], teacher, 16, 0):
        [chunk] = chunks
        assert torch.equal(chunk.student_pixels, decoded(unit, student))
        assert torch.equal(chunk.teacher_pixels, decoded(unit, teacher))
        assert not torch.equal(chunk.student_pixels, chunk.teacher_pixels)


def test_an_image_that_does_not_decode_is_named_and_black(units):
    for unit in units:
        unit.part.manifest = {**unit.part.manifest, "max_image_pixels": 10}
    for group, chunks in decode_ahead([units[-2:]], units[0].preprocess, 5, 0):
        faults = []
        for chunk in chunks:
            faults += chunk.faults
            assert not chunk.student_pixels.any()
        keys = [entry.key for unit in group for entry in unit.read_entries()]
        assert all(reason.startswith(f"{key}: cannot be decoded") for key, reason in zip(keys, faults, strict=True))


def test_pixels_are_stored_on_the_way_whole_or_not_at_all(units):
    """Stopped in the third of three files: two are there; the fourth chunk ends within the second file."""
    student, group = units[0].preprocess, units[:3]
    stopped, whole = ([unit.work / name / f"{unit.index}.npy" for unit in group] for name in ("stopped", "whole"))
    _, chunks = next(decode_ahead([group], student, 5, 0))
    seen = 0
    for chunk in store_pixels(stopped, group, chunks):
        seen += len(chunk.student_pixels)
        if seen > 32:
            break
    assert [path.exists() for path in stopped] == [True, True, False]
    _, chunks = next(decode_ahead([group], student, 5, 0))
    seen = torch.cat([chunk.student_pixels for chunk in store_pixels(whole, group, chunks)])
    for path, unit in zip(whole, group, strict=True):
        assert torch.equal(torch.from_numpy(np.load(path)), decoded(unit, student))
    assert torch.equal(seen, decoded_group(group, student))


def test_a_group_that_lacks_images_is_noticed(units):
    """Its chunks are gone once the next group was asked for."""
    path = units[0].work / "pixels.npy"
    (group, chunks), *_ = decode_ahead([units[:1], units[1:]], units[0].preprocess, 5, 0)
    with pytest.raises(AssertionError, match="refine/00000: 0 images came, of 16"):
        list(store_pixels([path], group, chunks))
    assert not path.exists()
