"""The gap of two models: the printed distances, and their change on the same pairs."""

import numpy as np
import pytest

from pipeline_lib.results.folders import CENTRED, Variant
from pipeline_lib.results.gap import centred_pairs, compare_gaps, first_pairs
from pipeline_lib.results.statistics import distance_change


def test_gap_holds_the_printed_distances_and_their_change_on_the_same_pairs(evaluations, settings):
    base, refined = evaluations
    found = compare_gaps(base, refined, "eval", settings)
    assert found.base == Variant(base).block("eval", "gap")["centroid_distance"]
    assert found.free == Variant(base, CENTRED).block("eval", "gap")["centroid_distance"]
    assert found.refined == Variant(refined).block("eval", "gap")["centroid_distance"]
    assert found.floor == Variant(refined).block("eval", "gap")["centroid_floor"]
    assert found.change.low < found.change.value < found.change.high < 0, "the example's gap narrows"
    for pairs, distance in (
        (first_pairs(base, "eval"), found.base),
        (centred_pairs(base, "eval"), found.free),
    ):
        assert np.linalg.norm(pairs[0].mean(0) - pairs[1].mean(0)) == pytest.approx(distance, rel=1e-4)
    assert found.against_free.low > 0
    assert compare_gaps(base, base, "eval", settings).change == (0, 0, 0)


def test_copies_of_an_image_are_one_in_the_change_of_the_gap(evaluations, settings):
    base, refined = evaluations
    unit, alone = base.items("eval")["image_unit"], compare_gaps(base, refined, "eval", settings)
    known = unit.copy()
    try:
        unit[:] = known // 10 * 10
        found = compare_gaps(base, refined, "eval", settings)
        unit[:] = 0
        assert compare_gaps(base, refined, "eval", settings) is None, "of one image there is no interval"
    finally:
        unit[:] = known
    before, after = (np.subtract(*first_pairs(one, "eval")) for one in (base, refined))
    options = {"num_samples": 300, "confidence": 0.95, "seed": 0}
    assert found.change == distance_change(before, after, known // 10 * 10, **options)
    assert (found.base, found.refined) == (alone.base, alone.refined)
    assert found.change != alone.change
