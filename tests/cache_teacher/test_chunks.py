"""Chunks hold every image of every unit once, in order, as each model preprocesses it."""

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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_unit_comes_with_its_own_images_in_order(units, num_workers):
    """Chunks of 5 in shards of 16: 5, 5, 5, 1."""
    student = units[0].preprocess
    found = [(unit, list(chunks)) for unit, chunks in decode_ahead(units, student, 5, num_workers)]
    assert [unit for unit, _ in found] == units
    for unit, chunks in found:
        assert [chunk.start for chunk in chunks] == [*range(0, unit.shard.num_samples, 5)]
        assert all(chunk.teacher_pixels is chunk.student_pixels and not chunk.faults for chunk in chunks)
        assert torch.equal(torch.cat([chunk.student_pixels for chunk in chunks]), decoded(unit, student))


def test_a_teacher_that_preprocesses_otherwise_has_pixels_of_its_own(units):
    student = units[0].preprocess
    teacher = replace(student, config={**student.config, "resize_mode": "squash"})
    for unit, chunks in decode_ahead(units[:1], teacher, 16, 0):
        [chunk] = chunks
        assert torch.equal(chunk.student_pixels, decoded(unit, student))
        assert torch.equal(chunk.teacher_pixels, decoded(unit, teacher))
        assert not torch.equal(chunk.student_pixels, chunk.teacher_pixels)


def test_an_image_that_does_not_decode_is_named_and_black(units):
    for unit in units:
        unit.part.manifest = {**unit.part.manifest, "max_image_pixels": 10}
    for unit, chunks in decode_ahead(units[-1:], units[0].preprocess, 5, 0):
        faults = {}
        for chunk in chunks:
            faults |= chunk.faults
            assert not chunk.student_pixels.any()
        assert [*faults] == [*range(unit.shard.num_samples)]
        keys = [entry.key for entry in unit.read_entries()]
        assert all(
            reason.startswith(f"{key}: cannot be decoded") for key, reason in zip(keys, faults.values(), strict=True)
        )


def test_pixels_are_stored_on_the_way_whole_or_not_at_all(units):
    student = units[0].preprocess
    stopped, whole = units[0].work / "stopped.npy", units[0].work / "whole.npy"
    unit, chunks = next(decode_ahead(units[:1], student, 5, 0))
    for chunk in store_pixels(stopped, unit, chunks):
        if chunk.start == 5:
            break
    assert not stopped.exists()
    unit, chunks = next(decode_ahead(units[:1], student, 5, 0))
    seen = torch.cat([chunk.student_pixels for chunk in store_pixels(whole, unit, chunks)])
    assert torch.equal(torch.from_numpy(np.load(whole)), seen)
    assert torch.equal(seen, decoded(unit, student))


def test_a_unit_that_lacks_images_is_noticed(units):
    """Its chunks are gone once the next unit was asked for."""
    path = units[0].work / "pixels.npy"
    (unit, chunks), *_ = decode_ahead(units, units[0].preprocess, 5, 0)
    with pytest.raises(AssertionError, match="refine/00000: 0 images came, of 16"):
        list(store_pixels(path, unit, chunks))
    assert not path.exists()
