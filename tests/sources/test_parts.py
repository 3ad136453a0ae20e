"""Splits: a sample's part depends on its key alone, lists go first, shares are kept, no key stands twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.parts import Splitter, check_keys, split
from pipeline_lib.sources.samples import FileImage, Sample, Samples

PARTS = {"base": 0.4, "refine": 0.3, "val": 0.1, "eval": 0.2}


def of(keys, folder) -> Samples:
    return Samples(lambda: (Sample(key, FileImage(f"images/{key}.jpg"), "jpg") for key in keys), folder)


def test_every_sample_is_in_one_part_and_shares_are_kept(tmp_path):
    keys = [f"k{n}" for n in range(20_000)]
    parts = split(of(keys, tmp_path), PARTS)
    assert sorted(s.key for part in parts.values() for s in part) == sorted(keys)
    for name, share in PARTS.items():
        assert len(parts[name]) / len(keys) == pytest.approx(share, abs=0.015)


def test_a_growing_set_moves_no_sample(tmp_path):
    small = split(of([f"k{n}" for n in range(0, 600, 2)], tmp_path), PARTS)
    large = split(of([f"k{n}" for n in range(900)], tmp_path), PARTS)
    for name in PARTS:
        assert {s.key for s in small[name]} <= {s.key for s in large[name]}


def test_the_split_is_the_same_in_every_release(tmp_path):
    """Frozen: a changed hash would put evaluated images of old runs into the training parts of new ones."""
    splitter = Splitter(PARTS, tmp_path)
    assert [splitter.part_of(key) for key in ("a", "b", "grinning", "000000000009", "x/y")] == [
        "base",
        "refine",
        "refine",
        "val",
        "refine",
    ]


def test_what_is_left_by_the_shares_is_in_no_part(tmp_path):
    parts = split(of([f"k{n}" for n in range(4000)], tmp_path), {"refine": 0.5, "val": 0.0})
    assert list(parts) == ["refine"]
    assert len(parts["refine"]) == pytest.approx(2000, abs=150)


def test_lists_claim_by_key_or_file_name_before_shares(tmp_path):
    (tmp_path / "val.txt").write_text("a\n\nb.jpg\r\n")
    parts = split(of("abcdef", tmp_path), {"refine": 1.0, "val": "val.txt"})
    assert [s.key for s in parts["val"]] == ["a", "b"]
    assert [s.key for s in parts["refine"]] == ["c", "d", "e", "f"]


def in_folders(tmp_path, lines, parts=("val",)):
    """Six samples as those of class folders, split by lists; `lines` by part."""
    keys = ["cat/1", "cat/2", "dog/2", "dog/3", "a.b/c.v2", "6"]
    given = [Sample(key, FileImage(f"my/set/{key}.JPG"), "jpg") for key in keys]
    for part, text in lines.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(text))
    parts = {part: f"{part}.txt" for part in lines}
    found = split(Samples(lambda: given, tmp_path), {"rest": 1.0, **parts})
    return {part: [one.key for one in found[part]] for part in parts}


@pytest.mark.parametrize(
    "line", ["cat/1", "cat/1.JPG", "./cat/1.JPG", "set/cat/1.JPG", "my/set/cat/1.JPG", "1.JPG", "1"]
)
def test_a_list_may_name_a_sample_by_its_path_or_by_the_end_of_it(tmp_path, line):
    assert in_folders(tmp_path, {"val": [line, "a.b/c.v2.JPG", "6"]}) == {"val": ["cat/1", "a.b/c.v2", "6"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"val": ["1.JPG", "2.JPG"]}, "val.txt: 2.JPG may be my/set/cat/2.JPG or my/set/dog/2.JPG; write their whole"),
        ({"val": ["2"]}, "val.txt: 2 may be my/set/cat/2.JPG or my/set/dog/2.JPG"),
        (
            {"val": ["1.JPG", "1.jpg", "at/1"]},
            "val.txt: 2 of its 3 lines name no sample .*as 1.jpg; .* key is like cat/1",
        ),
        ({"val": ["cat/1"], "test": ["cat/1.JPG"]}, r"sample `cat/1` is claimed by `val` \(as cat/1\) and `test` \(as"),
    ],
)
def test_a_line_that_names_two_samples_or_none_is_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        in_folders(tmp_path, lines)


def test_a_whole_name_goes_before_the_end_of_another(tmp_path):
    """So that lists of all keys are read as they are, though the end of one key is another."""
    keys = ["sub/1", "1"]
    (tmp_path / "val.txt").write_text("1")
    (tmp_path / "test.txt").write_text("sub/1")
    parts = split(of(keys, tmp_path), {"val": "val.txt", "test": "test.txt"})
    assert {part: [one.key for one in found] for part, found in parts.items()} == {"val": ["1"], "test": ["sub/1"]}


def test_a_split_and_a_list_may_not_claim_one_sample(tmp_path):
    (tmp_path / "val.txt").write_text("k1")
    given = [Sample("k1", FileImage("k1.jpg"), "jpg", split="train")]
    with pytest.raises(UserError, match=r"`k1` is claimed by `val` \(as k1\) and `refine` \(as split train\)"):
        split(Samples(lambda: given, tmp_path, ("train",)), {"refine": "train", "val": "val.txt"})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": 0.7, "b": 0.5}, "data.parts: the shares add up to 1.2"),
        ({"a": -0.1}, r"data.parts.a: a share must lie between 0 and 1, found -0.1"),
        ({"a": 1.5}, r"data.parts.a: a share must lie between 0 and 1"),
        ({"a": "missing.txt"}, "list file .*missing.txt of part `a` does not exist"),
        ({"a": "80%"}, "list file .*80% of part `a` does not exist; .* or write a share such as 0.8"),
        ({"a": "none.txt"}, r"none.txt of part `a` does not exist; name one .* own splits \(train, test\), or write"),
        ({"a": "train", "b": "train"}, r"data.parts.b: `a` has the split train already"),
        ({"a": "one.txt", "b": "two.txt"}, "two.txt: y stands in the lists of parts `a` and `b`"),
    ],
)
def test_wrong_parts_are_refused(tmp_path, parts, message):
    (tmp_path / "one.txt").write_text("x\ny\n")
    (tmp_path / "two.txt").write_text("y\nz\n")
    with pytest.raises(UserError, match=message):
        Splitter(parts, tmp_path, splits=("train", "test"))


def test_a_sets_own_splits_are_parts_by_their_name_and_go_first(tmp_path):
    """What no part claims by its split is shared out; a list file of that name is not looked for."""
    (tmp_path / "listed.txt").write_text("k2\n")
    given = [Sample(f"k{n}", FileImage(f"{n}.jpg"), "jpg", split=("train", "test", "")[n % 3]) for n in range(9)]
    samples = Samples(lambda: given, tmp_path, ("train", "test"))
    parts = split(samples, {"refine": "train", "val": "listed.txt", "eval": 1.0})
    assert {name: [one.key for one in part] for name, part in parts.items()} == {
        "refine": ["k0", "k3", "k6"],
        "val": ["k2"],
        "eval": ["k1", "k4", "k5", "k7", "k8"],
    }


def test_shares_may_add_up_to_one_with_rounding(tmp_path):
    splitter = Splitter({f"p{n}": 0.1 for n in range(10)}, tmp_path)
    assert splitter.bounds[-1] == (1.0, "p9")


def test_doubled_keys_are_named_with_both_places():
    keys = [("a", "x/a.jpg"), ("b", "x/b.jpg"), ("a", "y/a.png")]
    with pytest.raises(UserError, match=r"data: key `a` stands twice: x/a.jpg and y/a.png"):
        check_keys(lambda: iter(keys), "data")
    with pytest.raises(UserError, match=r"data: key `a`: the line of x/a.jpg is there twice; delete one$"):
        check_keys(lambda: iter([*keys[:2], keys[0]]), "data")
    check_keys(lambda: iter(keys[:2]), "data")


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), max_size=30))
def test_doubled_keys_are_found_exactly_when_there_are_any(keys):
    named = [(key, f"place {n}") for n, key in enumerate(keys)]
    if len(set(keys)) == len(keys):
        check_keys(lambda: iter(named), "data")
    else:
        with pytest.raises(UserError, match="stands twice"):
            check_keys(lambda: iter(named), "data")
