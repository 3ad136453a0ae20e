"""What the figures of features are drawn from, against loops."""

import numpy as np
import pytest

from pipeline_lib.report import drawings
from pipeline_lib.results.gap import unit_rows


def test_pairs_and_cosines_equal_loops():
    rng = np.random.default_rng(0)
    image, text = (unit_rows(rng.normal(size=(5, 3))) for _ in range(2))
    found = drawings.cosines(image, text)
    assert found["pairs"] == pytest.approx([image[i] @ text[i] for i in range(5)])
    assert sorted(found["non-pairs"]) == pytest.approx(
        sorted(image[i] @ text[j] for i in range(5) for j in range(5) if i != j)
    )
    assert sorted(found["image–image"]) == pytest.approx(
        sorted(image[i] @ image[j] for i in range(5) for j in range(i))
    )
