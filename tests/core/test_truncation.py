"""Counts of texts that are cut, worked by hand."""

from pipeline_lib.core.truncation import Truncation, describe_truncation, truncated_share


def test_counts_and_the_sentence_over_several_shards():
    count = Truncation(3)
    count.add(3, ["a b c d", "a b c e"], [[1, 2, 3], [1, 2, 3]])
    count.add(2, ["a b c d", "x y z w"], [[1, 2, 3], [7, 8, 9]])
    facts = {"context_length": 3, "num_texts": 5, "num_truncated": 4, "num_distinct": 3, "num_distinct_read": 2}
    assert count.facts() == facts
    assert describe_truncation("captions of val", facts, "teacher") == (
        "4 of 5 captions of val are longer than the 3 tokens that the teacher reads; of 3 different ones 2 are left."
    )


def test_one_text_that_stays_distinct_is_one_plain_sentence():
    count = Truncation(77)
    count.add(2, ["long"], [[1, 2]])
    expected = "1 of 2 class prompts of eval is longer than the 77 tokens that the model reads."
    assert describe_truncation("class prompts of eval", count.facts()) == expected
    assert truncated_share(count.facts()) == 0.5


def test_that_nothing_is_cut_is_counted_too():
    count = Truncation(77)
    assert truncated_share(count.facts()) == 0
    count.add(1, [], [])
    nothing = {"num_truncated": 0, "num_distinct": 0, "num_distinct_read": 0}
    assert count.facts() == {"context_length": 77, "num_texts": 1, **nothing}
    assert truncated_share(count.facts()) == 0
