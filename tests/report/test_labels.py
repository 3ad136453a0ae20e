"""Names beside marks: they cover nothing where there is room, and stand near what they name."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from pipeline_lib.report.labels import place_texts, write_names


def boxes(texts, offsets):
    for (at, (width, height)), (across, up) in zip(texts, offsets, strict=True):
        left = at[0] + across - {1: 0, 0: width / 2, -1: width}[int(np.sign(round(across)))]
        yield (left, at[1] + up - height / 2, left + width, at[1] + up + height / 2)


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("seed", range(3))
def test_names_cover_no_mark_and_no_other_name_and_stay_inside(seed):
    """A dozen names of 80 points' width, their marks within 60 points."""
    places = 150 + 30 * np.random.default_rng(seed).normal(size=(12, 2))
    texts = [(tuple(at), (80.0, 11.0)) for at in places]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    frame = (0.0, 0.0, 300.0, 300.0)
    offsets = place_texts(texts, frame, marks)
    found = list(boxes(texts, offsets))
    assert all(apart(*pair) for pair in itertools.combinations(found, 2))
    assert all(apart(box, mark) for box in found for mark in marks)
    assert all(frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3] for box in found)
    assert offsets == place_texts(texts, frame, marks)


def test_a_name_alone_stands_right_beside_its_mark():
    mark, frame = (45.0, 45.0, 55.0, 55.0), (0.0, 0.0, 200.0, 200.0)
    assert place_texts([((50.0, 50.0), (40.0, 11.0))], frame, [mark]) == [(9, 0)]


def test_a_name_keeps_off_a_line():
    """Of three points on a line, the middle one's name would stand on it at its usual place."""
    path = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0)]
    heights = []
    for line in ((), path):
        axes = Canvas(figsize=(4, 3), layout="constrained").subplots()
        axes.plot(*zip(*path, strict=True))
        write_names(axes, [("middle", path[1])], path, path=line)
        heights.append(abs(axes.texts[0].xyann[1]))
    assert heights[0] == 0
    assert heights[1] > 6
