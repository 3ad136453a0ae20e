"""Samples: what becomes of their texts, and that a stream of them starts anew each time."""

import pickle

from pipeline_lib.sources.samples import FileImage, Sample, Samples, make_sample


def sample(key: str, **more) -> Sample:
    return Sample(key, FileImage(f"images/{key}.jpg"), "jpg", **more)


def test_captions_are_stripped_and_empty_ones_counted():
    made = make_sample("a", FileImage("a.jpg"), "jpg", ["  one ", "", None, " \t", "two"])
    assert (made.captions, made.empty_captions) == (("one", "two"), 3)


def test_what_utf8_cannot_hold_is_escaped():
    made = make_sample("a\udcff", FileImage("a.jpg"), "jpg", ["half \ud83d pair"])
    assert (made.key, made.captions) == ("a\\udcff", ("half \\ud83d pair",))


def test_samples_start_anew(tmp_path):
    samples = Samples(lambda: (sample(key) for key in "ab"), tmp_path)
    assert [s.key for s in samples] == [s.key for s in samples] == ["a", "b"]


def test_samples_go_to_other_processes():
    made = sample("a", captions=("x",), labels={"class": 3})
    assert pickle.loads(pickle.dumps(made)) == made
