"""Cases in which a verdict was seen to err, and others that must not fool it, each made small with a known truth."""

from dataclasses import replace

import numpy as np
import torch

from pipeline_lib.calibrate import trials, worlds
from pipeline_lib.calibrate.worlds import TASK, World
from pipeline_lib.evaluate.embedded import Directions
from pipeline_lib.evaluate.zero_shot import zero_shot
from pipeline_lib.results import statistics

RANKS = ("image_to_text_log_rank", "text_to_image_log_rank")
TOP1 = "zero_shot_class_top1"


def made(world, seed=0, noise=1.0):
    """A set as a model sees it, and the points and noise it is made of."""
    generator = np.random.default_rng(seed)
    drawn = worlds.draw(world, generator)
    own = worlds.Noise(*(noise * one for one in worlds.draw_noise(drawn, generator)))
    return worlds.see(drawn, own), drawn, own


def verdicts(base, refined):
    rows = trials.judge([trials.measure(base), trials.measure(refined)], base.num_images)
    return {row.before.key: row for row in rows}


def random_model(embedded, seed):
    """The same set under a model that was never trained."""
    generator = torch.Generator().manual_seed(seed)
    image, text, prompts = (
        torch.randn(x.shape, generator=generator)
        for x in (
            embedded.raw_image_features,
            embedded.raw_text_features,
            embedded.tasks[TASK].raw_prompt_features["ensemble"],
        )
    )
    task = replace(embedded.tasks[TASK], raw_prompt_features={"ensemble": prompts})
    return replace(embedded, raw_image_features=image, raw_text_features=text, tasks={TASK: task})


def test_an_untrained_model_that_comes_to_answer_two_common_classes_is_not_better():
    """Top-1 triples and is certain to have risen, and nothing was learned: four seeds of four."""
    for seed in range(4):
        embedded, *_ = made(World("", 300, imbalance=0.9), seed)
        base = random_model(embedded, seed)
        prompts = base.tasks[TASK].raw_prompt_features["ensemble"][:, 0]
        common = torch.nn.functional.normalize(prompts[0] + prompts[1], dim=0)
        tilted = replace(base, raw_image_features=base.raw_image_features + 12 * common)
        row = verdicts(base, tilted)[TOP1]
        assert row.adjusted_p < 0.05, "the test alone is fooled"
        assert row.difference.value > 0.05
        assert row.verdict == "still"
        assert row.objection == "it is not measurably above what always answering the commonest class gives"
        _, classes, _ = zero_shot(Directions.of(tilted, None), tilted, TASK)
        assert classes["answers"]["num_given"] <= 3
        assert classes["answers"]["num_classes"] == 10


def test_a_gain_that_recall_at_one_does_not_see_is_found():
    """Every own caption comes nearer the front, and hardly one more comes first."""
    embedded, drawn, noise = made(World("", 400), noise=2.2)
    refined = worlds.see(drawn, worlds.Noise(noise.image * 0.9, noise.text * 0.9, noise.classes))
    rows = verdicts(embedded, refined)
    assert {rows[key].verdict for key in RANKS} == {"rose"}
    before, after = (trials.measure(one) for one in (embedded, refined))
    for direction in ("image_to_text", "text_to_image"):
        key = f"{direction}_recall_at_1"
        difference = before[key].mean._replace(values=after[key].mean.values - before[key].mean.values)
        assert statistics.sign_flips_by_image(difference) > rows[f"{direction}_log_rank"].adjusted_p


def test_a_copy_of_the_base_does_not_move():
    embedded, *_ = made(World("", 100, captions_per_image=2))
    assert {row.verdict for row in verdicts(embedded, embedded).values()} == {"still"}
    assert {row.adjusted_p for row in verdicts(embedded, embedded).values()} == {1.0}


def test_a_model_taught_wrong_captions_fell():
    """As far as its features went towards those of other pairs."""
    embedded, *_ = made(World("", 200))
    order = torch.from_numpy(np.random.default_rng(0).permutation(200))
    unit = torch.nn.functional.normalize
    taught = unit(embedded.raw_image_features, dim=1) + 0.7 * unit(embedded.raw_text_features[order], dim=1)
    rows = verdicts(embedded, replace(embedded, raw_image_features=taught))
    assert {rows[key].verdict for key in RANKS} == {"fell"}


def test_a_model_collapsed_to_one_class_fell_and_is_named():
    embedded, *_ = made(World("", 300))
    towards = embedded.tasks[TASK].raw_prompt_features["ensemble"][4, 0]
    collapsed = replace(embedded, raw_image_features=embedded.raw_image_features + 30 * towards)
    assert verdicts(embedded, collapsed)[TOP1].verdict == "fell"
    _, classes, _ = zero_shot(Directions.of(collapsed, None), collapsed, TASK)
    assert classes["answers"]["favourite"] == "4"
    assert classes["answers"]["favourite_share"] > 0.9


def test_labels_moved_by_one_never_make_a_better_model():
    """Of a truly better model: on labels that are the next class's it falls or stands, and its base is at no skill."""
    embedded, drawn, noise = made(World("", 400), noise=1.5)
    better = worlds.see(drawn, worlds.Noise(*(0.4 * one for one in noise)))
    moved = [
        replace(one, tasks={TASK: replace(one.tasks[TASK], labels=(one.tasks[TASK].labels + 1) % 10)})
        for one in (embedded, better)
    ]
    assert verdicts(embedded, better)[TOP1].verdict == "rose"
    row = verdicts(*moved)[TOP1]
    assert row.verdict == "still"
    assert row.before.interval.low <= row.before.floor
