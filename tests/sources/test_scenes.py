"""Scenes: the same everywhere, in one part each, and their texts tell what is to be seen, but for the web's."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import formats, scene_captions, scenes
from pipeline_lib.sources.openmoji_concepts import find_concepts
from pipeline_lib.sources.openmoji_drawing import SIZE
from pipeline_lib.sources.parts import split
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.scene_layout import COLOURS, Draw, compose
from pipeline_lib.sources.settings import DataSettings

ROOT = Path(__file__).parents[2]
CONCEPTS, _ = find_concepts()


def open_scenes(root=ROOT / "data/openmoji"):
    return scenes.open_set(Place(name="data", format="scenes", root=root))


@pytest.fixture(scope="module")
def samples():
    return list(open_scenes().samples)


def test_the_default_reads_every_part_as_it_is_published(samples):
    data = config.load(ROOT / "params.yaml", DataSettings)
    numbers = json.loads((ROOT / data.root / "index.json").read_text())["scenes"]
    parts = split(formats.open_source(data).samples, data.parts)
    assert list(parts) == list(scenes.PARTS)
    assert sorted(one.key for part in parts.values() for one in part) == sorted(one.key for one in samples)
    labelled = {part: sum(bool(sample.labels) for sample in found) for part, found in parts.items()}
    assert labelled["val"] == pytest.approx(len(CONCEPTS) / 3, rel=0.1)
    assert {part: n for part, n in labelled.items() if part != "val"} == {"base": 0, "refine": 0, "eval": 0}
    expected = {**numbers, "base": numbers["base"] + len(CONCEPTS), "val": numbers["val"] + labelled["val"]}
    assert {part: len(found) for part, found in parts.items()} == {part: expected[part] for part in scenes.PARTS}


def test_no_image_stands_in_two_parts_and_no_key_twice(samples):
    assert len({sample.key for sample in samples}) == len(samples)
    seen: dict[str, set] = {}
    for sample in samples:
        seen.setdefault(json.dumps(sample.image.stamp()), set()).add(sample.split)
    assert all(len(parts) == 1 for parts in seen.values())


def test_described_scenes_show_a_quarter_of_the_concepts_and_the_base_all(samples):
    name_of = {concept.emoji: concept for concept in CONCEPTS}
    shown = {part: set() for part in scenes.PARTS}
    for sample in samples:
        if sample.split != "val" or not sample.labels:
            shown[sample.split] |= {name_of[placed.emoji] for placed in sample.image.pictures}
    described = {concept for concept in CONCEPTS if scenes.is_described(concept)}
    assert len(described) / len(CONCEPTS) == pytest.approx(0.25, abs=0.03)
    assert shown["base"] == {*CONCEPTS}
    assert shown["refine"] == described
    assert shown["eval"] <= described
    assert shown["val"] <= described


def test_a_description_names_everything_and_its_background(samples):
    phrase_of = {concept.emoji: concept.phrase for concept in CONCEPTS}
    colour_of = {value: name for name, value in COLOURS.items()}
    for sample in samples:
        if sample.split in ("refine", "eval"):
            assert len({*sample.captions}) == 2
            for caption in sample.captions:
                assert all(phrase_of[placed.emoji] in caption for placed in sample.image.pictures)
                assert colour_of[sample.image.background] in caption
                assert "{" not in caption


def test_left_is_left_and_above_is_above(samples):
    """Read back from the text alone, by a grammar of its own, and compared with where the pictures are."""
    phrase_of = {concept.emoji: concept.phrase for concept in CONCEPTS}
    found = Counter()
    patterns = {
        r"(.+) to the left of (.+) on a .+ background": ("x", 1),
        r"(.+) to the right of (.+), with .+ behind them": ("x", -1),
        r"on the left (.+), on the right (.+), .+ background": ("x", 1),
        r"(.+) above (.+) on a .+ background": ("y", 1),
        r"(.+) below (.+), with .+ behind them": ("y", -1),
        r"(.+) at the top and (.+) at the bottom, .+ background": ("y", 1),
    }
    for sample in samples:
        if sample.split != "refine" or len(sample.image.pictures) != 2:
            continue
        place = {phrase_of[placed.emoji]: placed for placed in sample.image.pictures}
        for caption in sample.captions:
            for pattern, (axis, sign) in patterns.items():
                if match := re.fullmatch(pattern, caption):
                    first, second = (getattr(place[phrase], axis) for phrase in match.groups())
                    assert sign * (second - first) > 20, caption
                    found[pattern] += 1
    assert all(found[pattern] > 50 for pattern in patterns)


def test_the_web_names_bare_words_and_is_wrong_as_often_as_it_says(samples):
    name_of = {concept.emoji: concept.name for concept in CONCEPTS}
    wrong, texts = 0, [one for one in samples if re.fullmatch(r"base-\d{5}", one.key)]
    for sample in texts:
        names = [name_of[placed.emoji] for placed in sample.image.pictures]
        wrong += sum(not any(name in caption for name in names) for caption in sample.captions)
    assert wrong / (2 * len(texts)) == pytest.approx(scene_captions.WRONG, abs=0.01)


def test_pictures_lie_within_the_image_and_apart():
    for number in range(500):
        scene = compose(Draw(f"test {number}"), CONCEPTS)
        squares = [(p.x, p.y, p.x + p.size, p.y + p.size) for p in scene.pictures]
        assert all(min(square) >= 0 and max(square) <= SIZE for square in squares)
        for i, a in enumerate(squares):
            for b in squares[:i]:
                overlap = [min(a[2 + k], b[2 + k]) - max(a[k], b[k]) for k in (0, 1)]
                assert min(overlap) <= 5, scene  # pixels: pictures do not fill their squares


def test_another_process_draws_the_same_bytes_and_texts():
    code = (
        "import hashlib, itertools, pathlib; from pipeline_lib.sources import scenes\n"
        "from pipeline_lib.sources.place import Place\n"
        "source = scenes.open_set(Place(name='data', format='scenes', root=pathlib.Path('data/openmoji')))\n"
        "for one in itertools.islice(source.samples, 20):\n"
        "    print(one.key, one.captions, hashlib.sha256(one.image.read()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    first = [sample for sample, _ in zip(open_scenes().samples, range(20), strict=False)]
    lines = [f"{one.key} {one.captions} {hashlib.sha256(one.image.read()).hexdigest()}" for one in first]
    assert printed.splitlines() == lines


def test_draws_are_even():
    counts = np.bincount([Draw(f"x {i}").below(7) for i in range(7000)], minlength=7)
    assert ((counts > 850) & (counts < 1150)).all()
    assert all(len({*Draw(f"y {i}").several(range(5), 5)}) == 5 for i in range(20))


@pytest.mark.parametrize(
    "change", [{"scenes": None}, {"scenes": {"seed": 0}}, {"scenes": {"seed": 0, "base": "many"}}, {"extra": 1}]
)
def test_numbers_of_scenes_are_whole_and_complete(tmp_path, change):
    index = json.loads((ROOT / "data/openmoji/index.json").read_text())
    index |= change if "extra" not in change else {"scenes": {**index["scenes"], "extra": 1}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: `scenes` must hold a whole number for each of seed, base"):
        open_scenes(tmp_path)
