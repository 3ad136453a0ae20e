"""The calibration at small size: made sets are what they say, false alarms are no more frequent than claimed."""

import numpy as np
import pytest
from scipy import stats

from pipeline_lib.calibrate import study, trials, worlds
from pipeline_lib.calibrate.__main__ import main
from pipeline_lib.calibrate.worlds import World
from pipeline_lib.results import statistics
from tests import example_results


def test_copies_and_repeated_captions_are_equal_in_all_that_a_model_sees():
    generator = np.random.default_rng(0)
    drawn = worlds.draw(World("", 200, captions_per_image=2, copied=0.4, repeated=0.3), generator)
    seen = worlds.see(drawn, worlds.draw_noise(drawn, generator))
    image, text = seen.raw_image_features.numpy(), seen.raw_text_features.numpy()
    np.testing.assert_array_equal(image, image[drawn.image_unit])
    _, first, same = np.unique(drawn.text_unit, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(text, text[first[same]])
    assert 0.3 < np.mean(drawn.image_unit != np.arange(200)) < 0.5
    assert len(first) < 0.6 * len(text)


def test_unbalanced_classes_and_permuted_labels():
    generator = np.random.default_rng(0)
    drawn = worlds.draw(World("", 2000, imbalance=1.5), generator)
    shares = np.bincount(drawn.labels) / 2000
    assert shares[0] > 0.4 > 5 * shares[4]
    strangers = worlds.permuted(drawn, generator)
    shown = trials.measure(worlds.see(strangers, worlds.draw_noise(strangers, generator)))
    for one in shown.values():
        if one.measure.is_headline and one.measure.kind == "log_rank":
            assert one.measure.value == pytest.approx(one.measure.chance, abs=0.01)


def test_models_that_trade_places_keep_every_pair_of_items():
    generator = np.random.default_rng(0)
    drawn = worlds.draw(World("", 60, captions_per_image=2), generator)
    halves = [trials.measure(worlds.see(drawn, worlds.draw_noise(drawn, generator), half)) for half in (0, 1)]
    before, after = trials.traded(halves, generator, 60)
    for key in before:
        pairs = [np.stack([one[key].mean.values for one in models]) for models in (halves, (before, after))]
        np.testing.assert_array_equal(np.sort(pairs[0], 0), np.sort(pairs[1], 0))
    key = "text_to_image_log_rank"
    swapped = before[key].mean.values != halves[0][key].mean.values
    by_image = swapped.reshape(60, 2)
    differ = (halves[0][key].mean.values != halves[1][key].mean.values).reshape(60, 2).all(1)
    assert (by_image[differ, 0] == by_image[differ, 1]).all(), "captions go with their image"


def test_false_alarms_are_at_most_as_frequent_as_claimed():
    """The fast part of `python -m pipeline_lib.calibrate`: more than this many of 15 are one accident in a thousand."""
    found = study.study(World("unbalanced, copies", 50, captions_per_image=2, imbalance=1.0, copied=0.3), 15)
    for kind in (study.SAME, study.HALVES, study.PERMUTED, study.UNTRAINED):
        alarms = found.alarms[kind]
        assert alarms.runs == 15
        assert alarms.false <= stats.binom.isf(0.001, 15, 0.05), kind
    assert found.alarms[study.UNTRAINED].false == 0, "a model that hardly differs is never told from the base"
    assert found.alarms[study.PERMUTED].rose == 0, "nothing rises where captions and labels are others'"
    assert found.several.false <= stats.binom.isf(0.001, 15, 0.05)
    for one, two, five, smallest in found.power.values():
        assert one <= two <= five < 0.8 or smallest <= 0.05


def test_copies_taken_for_images_would_raise_false_alarms():
    """What the units are for: the same sets, every copy counted as evidence of its own."""
    alarms = {"as one": 0, "as many": 0}
    for run in range(60):
        generator = np.random.default_rng(run)
        unit = generator.integers(12, size=120)  # 120 images, 12 of them distinct
        difference = generator.standard_normal(120)[unit]
        for name, index in (("as one", unit), ("as many", np.arange(120))):
            alarms[name] += statistics.sign_flips_by_image(statistics.Mean(difference, index)) < 0.05
    assert alarms["as one"] <= 8
    assert alarms["as many"] > 20


def test_of_a_truly_better_model_the_rise_is_found():
    generator = np.random.default_rng(3)
    drawn = worlds.draw(World("", 300), generator)
    noise = worlds.draw_noise(drawn, generator)
    better = worlds.Noise(*(0.4 * one for one in noise))
    models = [trials.measure(worlds.see(drawn, one)) for one in (noise, better)]
    assert {row.verdict for row in trials.judge(models, 300)} == {"rose"}
    assert {row.verdict for row in trials.judge_seeds(models[0], [models[1]] * 3, 300)} == {"rose"}


def test_the_command_prints_both_tables(tmp_path, capsys):
    main(["--sizes", "20", "--runs", "1"])
    printed = capsys.readouterr().out
    assert printed.count("20 images, ") == 5
    assert "two halves of a model" in printed
    assert "3 seeds together" in printed
    whole = printed.split("all of these together\n")[1]
    assert [line.split("  ")[1] for line in whole.splitlines()] == [
        study.SAME,
        study.HALVES,
        study.PERMUTED,
        study.UNTRAINED,
        "one run of a training that helps nothing",
        "the same, 3 seeds together",
    ]
    example_results.make_project(tmp_path)
    main(["--folder", str(tmp_path / "data/eval"), "--sizes", "40", "--runs", "10"])
    printed = capsys.readouterr().out
    assert "R@1" in printed
    assert "eval: image → text" in printed
