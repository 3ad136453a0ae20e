"""The gap of two models: the printed distances, and their change on the same pairs."""

import numpy as np
import pytest

from pipeline_lib.results.folders import CENTRED, Variant
from pipeline_lib.results.gap import centred_pairs, compare_gaps, first_pairs


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
