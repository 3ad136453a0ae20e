"""Scores of choices against slow loops, against chance, and on a tiny model over every published layout."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline_lib import model
from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.choices import Choice
from pipeline_lib.evaluate import choices, scoring
from pipeline_lib.evaluate.embedded import EmbeddedChoices, EmbeddedSet, Means
from pipeline_lib.evaluate.measured import headline_values, with_intervals
from pipeline_lib.results import statistics
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import compare_measures
from tests.evaluate.test_evaluate import SETTINGS

WIDTH = 8


def embed(asked, seed=0):
    """Random features of every image and text of the choices `asked`."""
    keys = list(dict.fromkeys(key for one in asked for key in one.images))
    texts = list(dict.fromkeys(text for one in asked for text in one.texts))
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(len(rows), WIDTH, generator=generator) for rows in (keys, texts))
    places = [{name: row for row, name in enumerate(names)} for names in (keys, texts)]
    return EmbeddedSet(
        name="s",
        digest="0" * 64,
        keys=tuple(keys),
        image_hashes=tuple(keys),
        captions=(),
        text_image_index=torch.empty(0, dtype=torch.int64),
        raw_image_features=5 * image,
        raw_text_features=torch.empty(0, WIDTH),
        logit_scale=30.0,
        tasks={},
        choices=EmbeddedChoices(asked, *places, 3 * text),
    )


def make_choices(count, num_right=1, num_wrong=1, per_image=1):
    """Choices in two groups, `per_image` on each image."""
    return [
        Choice(
            key=str(n),
            images=(f"image {n // per_image}",),
            captions=tuple(f"right {n} {i}" for i in range(num_right)),
            negatives=tuple(f"wrong {n} {i}" for i in range(num_wrong)),
            groups=(("even", "odd")[n % 2],),
        )
        for n in range(count)
    ]


def make_pairs(count):
    return [
        Choice(
            key=str(n), images=(f"a {n}", f"b {n}"), captions=(f"of a {n}", f"of b {n}"), groups=("g",) * (n % 3 == 0)
        )
        for n in range(count)
    ]


def measure(embedded, means=None):
    """Measures by key, and the arrays."""
    block, items = scoring.score(embedded, SETTINGS, means)
    return {one.measure.key: one for one in block["measures"]}, items


def cosine(x, y):
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=0))


def slow(embedded, image=None, text=None):
    """Every score of every choice by the definitions, one cosine at a time."""
    image = embedded.raw_image_features if image is None else image
    text = embedded.choices.raw_text_features if text is None else text
    rows, found = embedded.choices, []
    for one in rows.choices:
        t = {name: text[rows.text_row[name]] for name in one.texts}
        i = [image[rows.image_row[key]] for key in one.images]
        if one.is_pair:
            s = [[cosine(i[a], t[one.captions[b]]) for b in range(2)] for a in range(2)]
            scores = {"text": s[0][0] > s[0][1] and s[1][1] > s[1][0], "image": s[0][0] > s[1][0] and s[1][1] > s[0][1]}
            scores["group"] = scores["text"] and scores["image"]
            found.append({f"image_pairs_{name}_score": hit for name, hit in scores.items()})
            continue
        hit = all(cosine(i[0], t[right]) > cosine(i[0], t[wrong]) for right in one.captions for wrong in one.negatives)
        found.append({"caption_choice_accuracy": hit})
        if (len(one.captions), len(one.negatives)) == (2, 1):
            first, second, wrong = (t[name] for name in one.texts)
            between = cosine(first, second)
            found[-1]["caption_choice_tot"] = between > cosine(first, wrong) and between > cosine(second, wrong)
    return found


MIXED = [
    *make_choices(40),
    *(dataclasses.replace(one, key=f"pp {one.key}") for one in make_choices(40, num_right=2)),
    *(dataclasses.replace(one, key=f"many {one.key}") for one in make_choices(20, num_right=3, num_wrong=4)),
]


@pytest.mark.parametrize("asked", [make_choices(50), make_choices(60, num_right=2, per_image=3), MIXED, make_pairs(60)])
def test_scores_equal_slow_loops(asked):
    embedded = embed(asked)
    found, items = measure(embedded)
    expected = slow(embedded)
    for key, one in found.items():
        if one.measure.task:
            score, group = one.measure.score, one.measure.task
        else:
            score, group = key, None
        hits = [
            row[score]
            for row, choice in zip(expected, asked, strict=True)
            if score in row and group in (None, *choice.groups)
        ]
        assert items[one.measure.items].tolist() == hits
        assert one.measure.value == np.mean(hits)
    scores = {score for row in expected for score in row}
    assert {one.measure.key for one in found.values() if not one.measure.task} == scores


def test_the_centred_variant_centres_images_and_texts():
    embedded = embed(make_choices(60, num_right=2))
    means = Means(torch.full((WIDTH,), 0.2), torch.full((WIDTH,), -0.1))
    unit = torch.nn.functional.normalize
    image = unit(embedded.raw_image_features, dim=1) - means.image
    text = unit(embedded.choices.raw_text_features, dim=1) - means.text
    (_, plain), (_, centred) = measure(embedded), measure(embedded, means)
    for key in ("caption_choice_accuracy", "caption_choice_tot"):
        assert centred[f"{key}.correct"].tolist() == [row[key] for row in slow(embedded, image, text)]
        assert centred[f"{key}.correct"].tolist() != plain[f"{key}.correct"].tolist()


@pytest.mark.parametrize(
    ("asked", "chances"),
    [
        (make_choices(2000), {"caption_choice_accuracy": 1 / 2}),
        (make_choices(2000, num_wrong=4), {"caption_choice_accuracy": 1 / 5}),
        (make_choices(2000, num_right=2), {"caption_choice_accuracy": 1 / 3, "caption_choice_tot": 1 / 3}),
        (
            make_pairs(2000),
            {"image_pairs_group_score": 1 / 6, "image_pairs_text_score": 1 / 4, "image_pairs_image_score": 1 / 4},
        ),
    ],
)
def test_random_features_score_chance(asked, chances):
    found, _ = measure(embed(asked))
    for key, chance in chances.items():
        assert found[key].measure.chance == pytest.approx(chance)
        error = (chance * (1 - chance) / len(asked)) ** 0.5
        assert abs(found[key].measure.value - chance) < 4 * error
    of_groups = [one.measure for one in found.values() if one.measure.task]
    assert of_groups
    assert all(one.chance == pytest.approx(chances[one.score]) for one in of_groups)


def test_the_chance_of_unlike_choices_is_their_mean():
    found, _ = measure(embed(MIXED))
    accuracy = found["caption_choice_accuracy"].measure
    assert accuracy.chance == pytest.approx((40 * 1 / 2 + 40 * 1 / 3 + 20 * 1 / 35) / 100)


def test_swapping_images_and_captions_of_pairs_changes_no_score():
    asked = make_pairs(60)
    embedded = embed(asked)
    swapped = [dataclasses.replace(one, images=one.images[::-1], captions=one.captions[::-1]) for one in asked]
    other = dataclasses.replace(embedded, choices=dataclasses.replace(embedded.choices, choices=swapped))
    first, second = (measure(one)[1] for one in (embedded, other))
    for name in ("group", "text", "image"):
        key = f"image_pairs_{name}_score.correct"
        assert first[key].tolist() == second[key].tolist()
    assert first["image_pairs_text_score.correct"].tolist() != first["image_pairs_image_score.correct"].tolist()
    both = np.minimum(first["image_pairs_text_score.correct"], first["image_pairs_image_score.correct"])
    assert first["image_pairs_group_score.correct"].tolist() == both.tolist()


@pytest.mark.parametrize("asked", [make_choices(30), make_choices(30, num_right=2), make_pairs(30)])
def test_ties_are_wrong(asked):
    """A model that says the same of everything is never right, whatever the rounding."""
    embedded = embed(asked)
    constant = torch.randn(1, WIDTH).expand(len(embedded.choices.text_row), -1)
    same = dataclasses.replace(embedded, choices=dataclasses.replace(embedded.choices, raw_text_features=constant))
    found, _ = measure(same)
    assert {one.measure.value for one in found.values()} == {0.0}


def test_itt_is_at_most_the_accuracy_of_each_caption_alone():
    asked = make_choices(200, num_right=2)
    itt, text_only = (measure(embed(asked))[1][f"caption_choice_{name}.correct"] for name in ("accuracy", "tot"))
    for caption in range(2):
        embedded = embed(asked)
        alone = [dataclasses.replace(one, captions=one.captions[caption : caption + 1]) for one in asked]
        one = dataclasses.replace(embedded, choices=dataclasses.replace(embedded.choices, choices=alone))
        assert (itt <= measure(one)[1]["caption_choice_accuracy.correct"]).all()
    assert itt.sum() != text_only.sum()


def test_one_headline_the_others_carry_an_interval_alone():
    for asked, key in ((MIXED, "caption_choice_accuracy"), (make_pairs(30), "image_pairs_group_score")):
        embedded = embed(asked)
        block, _ = scoring.score(embedded, SETTINGS)
        stored = with_intervals(block, embedded.num_images, SETTINGS)["measures"]
        found = [Measure.read("s", one) for one in stored]
        assert list(headline_values(found)) == [key]
        assert [one.key for one in found if one.is_tested] == [key]
        assert all(one.low <= one.value <= one.high and one.kind == "choice" for one in found)
        assert "recall" not in {one.kind for one in found}
        assert set(block["gap"]) == {"raw_image_norm"}


def test_labels_say_what_was_asked():
    labels = [[one.measure.label for one in measure(embed(asked))[0].values()] for asked in (MIXED, make_pairs(4))]
    assert labels[0][:3] == ["caption choice", "caption choice, even", "caption choice, odd"]
    assert labels[1] == [f"{name} score{end}" for name in ("group", "text", "image") for end in ("", ", g")]
    itt = measure(embed(make_choices(4, num_right=2)))[0]
    assert itt["caption_choice_accuracy_odd"].measure.label == "caption choice (ITT), odd"


def test_choices_that_share_images_are_one_unit():
    """Directly, or over a third: a resample has all of them or none."""
    chain = [("a", "b"), ("c", "d"), ("b", "e"), ("f", "g"), ("e", "c")]
    pairs = [Choice(key=str(n), images=images, captions=(f"{n} x", f"{n} y")) for n, images in enumerate(chain)]
    embedded = embed(pairs)
    units = choices.image_units(embedded.choices)
    assert units[[0, 1, 2, 4]].tolist() == [embedded.choices.image_row["a"]] * 4
    assert units[3] == embedded.choices.image_row["f"]
    assert scoring.common_items(embedded)["image_pairs_text_score.image_index"].tolist() == units.tolist()
    assert measure(embedded)[0]["image_pairs_group_score"].measure.is_tested


def test_every_published_layout_is_sharded_embedded_and_scored(chosen, monkeypatch):
    monkeypatch.chdir(chosen)
    sizes = {"crepe": 12, "crepe_pp": 12, "wino": 5, "natural": 4, "mmvp": 3}
    for name in ("base", "refined"):
        clip = model.load(chosen / "data" / name)
        results = artifacts.read_json(Path(f"data/eval/{name}/results.json"))
        flat = artifacts.read_json(Path(f"data/eval/{name}.json"))
        for set_name, count in sizes.items():
            part = shards.read_part(Path("data/shards", set_name))
            found = results["sets"][set_name]
            assert found["num_choices"] == len(part.choices) == count
            assert found["num_captions"] == 0
            assert set(found["variants"]["plain"]) == set(found["variants"]["mean_centred"]) == {"measures", "gap"}
            keys = {measure["key"] for measure in found["variants"]["plain"]["measures"]}
            assert keys <= set(flat[set_name])
            embedded = one_by_one(clip, part)
            items = load_file(f"data/eval/{name}/items/{set_name}.safetensors")
            for score in ("caption_choice_accuracy", "caption_choice_tot", *choices.PAIR_CHANCES):
                hits = [row[score] for row in slow(embedded) if score in row]
                assert (score in flat[set_name]) == bool(hits)
                if hits:
                    assert items[f"{score}.correct"].tolist() == hits
                    assert flat[set_name][score] == pytest.approx(np.mean(hits))
    headlines = {
        name: next(iter(row["sets"][name]))
        for row in Evaluation(Path("data/eval/refined")).results["wise_ft"]
        for name in sizes
    }
    assert set(headlines.values()) == {"caption_choice_accuracy", "image_pairs_group_score"}


def one_by_one(clip, part):
    """The choices of a part, each image and text encoded by itself."""
    embedded = embed(part.choices)
    image, text = (
        torch.empty(len(embedded.image_hashes), clip.embed_dim),
        torch.empty(len(embedded.choices.text_row), clip.embed_dim),
    )
    with torch.no_grad():
        for shard in part.shards:
            for entry in shard.samples():
                if entry.key in embedded.choices.image_row:
                    pixels = torch.from_numpy(clip.decode(shard.read_image(entry), 10**8))[None]
                    image[embedded.choices.image_row[entry.key]] = clip.encode_image(pixels)[0]
        for words, row in embedded.choices.text_row.items():
            text[row] = clip.encode_text(clip.tokenize([words]))[0]
    rows = dataclasses.replace(embedded.choices, raw_text_features=text)
    return dataclasses.replace(embedded, raw_image_features=image, choices=rows)


def test_two_models_are_compared_on_the_same_choices(chosen):
    """With the interval and the test of every headline from the written arrays."""
    base, refined = (Evaluation(chosen / "data/eval" / name) for name in ("base", "refined"))
    for variants in ((Variant(base), Variant(refined)), (Variant(base, CENTRED), Variant(refined))):
        rows = compare_measures(*variants, SETTINGS, sets=["crepe", "wino"])
        tested = {row.before.set_name: row for row in rows if row.p_value is not None}
        assert set(tested) == {"crepe", "wino"}
        for name, key in (("crepe", "caption_choice_accuracy"), ("wino", "image_pairs_group_score")):
            before, after = (one.array(name, f"{key}.correct").astype(float) for one in variants)
            units = base.items(name)[f"{key}.image_index"]
            assert tested[name].p_value == pytest.approx(statistics.sign_flips(np.bincount(units, after - before)))
            assert tested[name].difference.value == pytest.approx((after - before).mean())
