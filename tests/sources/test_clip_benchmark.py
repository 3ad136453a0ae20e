"""clip-benchmark's layout: tars by number, class labels or captions; and what a user may get wrong."""

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.samples import Task
from tests.small_sets import clip_benchmark, open_for_evaluation, write


def test_clip_benchmark_classification(tmp_path):
    opened = open_for_evaluation(clip_benchmark(tmp_path / "cifar"), "clip_benchmark")
    assert [tar.path.name for tar in opened.tars] == [f"{n}.tar" for n in range(11)]
    samples = list(opened.samples)
    assert [s.key for s in samples][:3] == ["s0000000", "s0000011", "s0000001"]
    assert [s.labels["class"] for s in samples][:3] == [0, 1, 1]
    assert opened.tasks["class"] == Task(("cat", "hot dog"), ("a photo of a {}.", "art of the {}."))
    assert opened.labelled
    assert not opened.captioned


def test_clip_benchmark_retrieval(tmp_path):
    opened = open_for_evaluation(clip_benchmark(tmp_path / "set", retrieval=True), "clip_benchmark")
    assert opened.captioned
    assert not opened.labelled
    assert not opened.tasks
    assert next(iter(opened.samples)).captions == ("first of 0", "second of 0")


def test_tars_that_are_missing(tmp_path):
    root = clip_benchmark(tmp_path / "set")
    (root / "test/3.tar").unlink()
    with pytest.raises(UserError, match=r"data.evaluation.s: .*test holds 10 tars, 11 expected"):
        open_for_evaluation(root, "clip_benchmark")
    with pytest.raises(UserError, match=r"no \*.tar in .*train$"):
        open_for_evaluation(root, "clip_benchmark", split="train")


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("multilabel", "a\nb", "says `multilabel`: several labels an image .*wds_voc2007 for wds_voc2007_multilabel"),
        ("captions", "a\nb", "dataset_type.txt says `captions`; known are classification, retrieval"),
        (None, None, "no .*classnames.txt, so its labels have no names; a set of captions says `retrieval`"),
        ("classification", None, "no .*classnames.txt, so its labels have no names"),
        (None, "a\n\nb", "classnames.txt: line 2 is empty; the line of a name is the number of its label"),
    ],
)
def test_the_type_of_a_set_and_its_names_are_read(tmp_path, kind, names, message):
    root = clip_benchmark(tmp_path / "set")
    for name, content in (("dataset_type.txt", kind), ("classnames.txt", names)):
        (root / name).unlink(missing_ok=True)
        if content:
            write(root / name, content)
    with pytest.raises(UserError, match=message):
        open_for_evaluation(root, "clip_benchmark")


def test_a_set_that_says_classification_is_one(tmp_path):
    root = clip_benchmark(tmp_path / "set")
    before = open_for_evaluation(root, "clip_benchmark").tasks
    write(root / "dataset_type.txt", "classification\n")
    assert open_for_evaluation(root, "clip_benchmark").tasks == before
