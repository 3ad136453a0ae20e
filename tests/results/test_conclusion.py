"""The conclusion against cases worked by hand."""

import pytest

from pipeline_lib.results.conclusion import conclusion


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("rose", "rose"), "Better: all 2 headlines rose."),
        (("rose", "still", "still"), "Better: of 3 headlines, 1 rose and 2 did not move measurably."),
        (("rose", "fell", "still"), "Mixed: of 3 headlines, 1 rose, 1 fell and 1 did not move measurably."),
        (("fell", "still"), "Worse: of 2 headlines, 1 fell and 1 did not move measurably."),
        (("still",), "No measurable change in the one headline."),
        (("still",) * 4, "No measurable change in any of the 4 headlines."),
        ((), "Nothing to compare: no headline was measured on both models."),
    ],
)
def test_sentence_begins_with_the_conclusion(verdicts, expected):
    assert conclusion(verdicts) == expected
