"""clip-benchmark's layout: tars by number, class labels or captions; and what a user may get wrong."""

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.samples import Task
from tests.small_sets import clip_benchmark, open_for_evaluation


def test_clip_benchmark_classification(tmp_path):
    opened = open_for_evaluation(clip_benchmark(tmp_path / "cifar"), "clip_benchmark")
    assert [tar.path.name for tar in opened.tars] == [f"{n}.tar" for n in range(11)]
    samples = list(opened.samples)
    assert [s.key for s in samples][:3] == ["s0000000", "s0000011", "s0000001"]
    assert [s.labels["class"] for s in samples][:3] == [0, 1, 1]
    assert opened.tasks["class"] == Task(("cat", "hot dog"), ("a photo of a {}.", "art of the {}."))
    assert not opened.captioned


def test_clip_benchmark_retrieval(tmp_path):
    opened = open_for_evaluation(clip_benchmark(tmp_path / "set", retrieval=True), "clip_benchmark")
    assert opened.captioned
    assert not opened.tasks
    assert next(iter(opened.samples)).captions == ("first of 0", "second of 0")


def test_tars_that_are_missing(tmp_path):
    root = clip_benchmark(tmp_path / "set")
    (root / "test/3.tar").unlink()
    with pytest.raises(UserError, match=r"data.evaluation.s: .*test holds 10 tars, 11 expected"):
        open_for_evaluation(root, "clip_benchmark")
    with pytest.raises(UserError, match=r"no \*.tar in .*train$"):
        open_for_evaluation(root, "clip_benchmark", split="train")
