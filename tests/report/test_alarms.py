"""What the verdict says beside the headlines, and what it advises: each case made in the example project's results."""

import dataclasses

import pytest

from pipeline_lib.report import advice, alarms, tables, verdict
from pipeline_lib.report import run as report
from pipeline_lib.report.page import Text
from pipeline_lib.results.statistics import Interval
from tests import example_results


@pytest.fixture
def inputs(project, monkeypatch):
    return example_results.read_report_inputs(project, monkeypatch)


def of_set(evaluation, name="eval"):
    return evaluation.results["sets"][name]["variants"]["plain"]


def with_refine(inputs, **facts):
    return dataclasses.replace(
        inputs, manifests={**inputs.manifests, "refine": {**inputs.manifests["refine"], **facts}}
    )


def test_a_sound_model_raises_no_alarm(inputs):
    assert alarms.breakdowns(inputs) == []
    assert alarms.doubts(inputs) == []
    assert verdict.sentence(inputs).startswith("Mixed: ")


def test_a_model_that_answers_one_class_is_broken_whatever_rose(inputs):
    answers = of_set(inputs.refined)["classes"]["shape"]["answers"]
    answers |= {"num_given": 1, "favourite": "round", "favourite_share": 0.97, "favourite_true_share": 0.25}
    few, drift = alarms.breakdowns(inputs)
    assert few == "On eval: shape only 1 of 4 classes are ever answered (before: 4)."
    assert drift.startswith("On eval: shape answers drift to one class: 97.0\u00a0% of them are `round`, which 25.0")
    assert verdict.sentence(inputs).startswith("Broken, whatever rose: mixed: of 3 headlines")
    assert advice.next_step(inputs).startswith("do not use this model; run again with `refine.learning_rate: 5e-06`")
    assert few in report.terminal_table(inputs).replace("\n", " ")


@pytest.mark.parametrize(
    ("was", "now", "share", "said"),
    [
        ((4, 0.3), 3, 0.4, 0),  # as many as before, nearly
        ((2, 0.6), 2, 0.65, 0),  # poor before, and no poorer
        ((2, 0.6), 1, 0.65, 1),  # half of what few there were
        ((3, 0.6), 3, 0.9, 1),  # drifted much further towards one
        ((3, 0.4), 3, 0.6, 1),  # and over the half
    ],
)
def test_what_the_base_did_as_well_is_no_breakdown(inputs, was, now, share, said):
    for evaluation, (given, favourite) in ((inputs.base, was), (inputs.refined, (now, share))):
        answers = of_set(evaluation)["classes"]["shape"]["answers"]
        answers |= {"num_given": given, "favourite_share": favourite, "favourite_true_share": 0.25}
    assert len(alarms.breakdowns(inputs)) == said


def test_collapsed_features_are_said(inputs):
    of_set(inputs.refined)["gap"]["effective_rank_text"] = 1.2
    (said,) = alarms.breakdowns(inputs)
    assert said.startswith("The features of captions on eval collapsed: they spread over 1 directions, before over ")


@pytest.mark.parametrize(
    ("before", "after", "broken", "said"),
    [
        (16.0, 71.0, True, False),
        (2.0, 2.5, False, True),
        (2.0, 2.1, False, False),
        (0.0, 0.5, False, False),  # distilled from the base alone: it begins at 0
    ],
)
def test_a_loss_on_val_that_rose_is_said_and_one_that_soared_is_broken(inputs, before, after, broken, said):
    inputs = with_refine(inputs, val_loss={"before": before, "after": after})
    text = f"The loss on part val, which the run does not train on, rose from {before:.3f} to {after:.3f}."
    assert alarms.breakdowns(inputs) == [text] * broken
    assert alarms.doubts(inputs) == [text] * said


def test_a_copy_of_the_base_is_no_refinement(inputs):
    inputs.refined.results["weights_digest"] = inputs.base.results["weights_digest"]
    assert verdict.sentence(inputs) == "No change: the refined model is the base, weight by weight."
    assert alarms.doubts(inputs)[0] == "The refined model has the weights of the base: nothing was trained."
    assert advice.next_step(inputs).startswith("train: the rate 5e-05 over ")


def test_a_base_at_chance_makes_every_number_doubtful(inputs):
    for evaluation in (inputs.base, inputs.refined):
        for measure in of_set(evaluation)["measures"]:
            measure["chance"] = 0.9 if measure.get("is_headline") else measure.get("chance")
    assert len(alarms.doubts(inputs)) == 3
    assert "check that captions and labels belong to their images" in alarms.doubts(inputs)[0]
    assert advice.next_step(inputs).startswith("check that captions and labels belong to their images")
    assert verdict.sentence(inputs) == "No measurable change in any of the 3 headlines."


@pytest.mark.parametrize(("high", "said"), [(-0.021, 1), (0.001, 0)])
def test_classes_that_lost_behind_others_that_won_are_said(inputs, high, said):
    row = next(row for row in inputs.comparison if row.before.task)
    rare = dataclasses.replace(
        row,
        before=dataclasses.replace(row.before, value=0.367, score="rare_classes"),
        after=dataclasses.replace(row.after, value=0.317, score="rare_classes"),
        difference=Interval(-0.05, -0.08, high),
        adjusted_p=None,
    )
    inputs.comparison.append(rare)
    expected = (
        "On eval, shape loses on classes that the training captions seldom name: 36.7 → 31.7\u00a0%, −5.0 points "
        "(−8.0 to −2.1)."
    )
    assert alarms.lost_classes(inputs) == [expected][:said]
    assert (expected in report.terminal_table(inputs).replace("\n", " ")) == bool(said)


def test_images_left_out_are_counted_with_their_reason(inputs):
    inputs.parts["eval"].manifest["filtered"] = {"the same picture is in refine": 1}
    assert alarms.left_out(inputs) == ["1 image of eval left out: the same picture is in refine."]
    points = next(block for block in verdict.section(inputs) if block.kind == "points")
    assert points.items[-1] == ("1 image of eval left out: the same picture is in refine.", "still")
    inputs.parts["eval"].manifest["similar_to_trained"] = 2
    assert alarms.left_out(inputs)[1].startswith("2 images of eval similar to one in a training part")


def test_texts_that_the_model_reads_in_part_are_said(inputs):
    assert alarms.truncated(inputs) == []
    counts = {"context_length": 77, "num_texts": 9, "num_truncated": 4, "num_distinct": 4, "num_distinct_read": 2}
    for evaluation in (inputs.base, inputs.refined):
        evaluation.sets["eval"]["truncated"] = {"captions": counts}
    inputs.manifests["cache_teacher"]["parts"] = {"refine": {"truncated": {"teacher": counts}}}
    read = "are longer than the 77 tokens that the {} reads; of 4 different ones 2 are left."
    expected = [
        "4 of 9 captions of eval " + read.format("model"),
        "4 of 9 captions of refine " + read.format("teacher"),
    ]
    assert alarms.truncated(inputs) == expected
    points = next(block for block in verdict.section(inputs) if block.kind == "points")
    assert points.items[-2:] == tuple((text, "still") for text in expected)
    whole = {"context_length": 256, "num_texts": 9, "num_truncated": 0, "num_distinct": 0, "num_distinct_read": 0}
    inputs.refined.sets["eval"]["truncated"] = {"captions": whole}
    assert alarms.truncated(inputs) == ["4 of 9 captions of eval " + read.format("base"), expected[1]]
    (table,) = [one for one in tables.data_table(inputs) if one.header[0].startswith("texts longer")]
    assert table.header[2:] == ("base: over 77 tokens", "refined: over 256 tokens")
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["eval: captions", "9", "4 (44.4\u00a0%)", "0 (0.0\u00a0%)"]
    ]


def replaced(inputs, *verdicts, centring="still"):
    """The same inputs with other verdicts of the headlines, and one for all against mean-centring."""
    tested = iter(verdicts)
    for row in inputs.comparison:
        if row.adjusted_p is not None:
            object.__setattr__(row, "verdict", next(tested))
    for row in inputs.against_centring:
        object.__setattr__(row, "verdict", centring)
    return inputs


@pytest.mark.parametrize(
    ("verdicts", "centring", "moved", "says"),
    [
        (("rose", "rose", "still"), "still", 0.01, "keep it, and refine with more seeds"),
        (
            ("fell", "still", "still"),
            "still",
            0.01,
            "take mix 0.75, the best on val: `python -m pipeline_lib.export hub --to mixed",
        ),
        (("still",) * 3, "fell", 0.01, "prefer mean-centring: it costs nothing"),
        (("still",) * 3, "still", 1e-4, "raise the rate (`refine.learning_rate: 0.00015`)"),
        (("still",) * 3, "still", 0.01, "test on more images: about "),
    ],
)
def test_what_to_do_next_follows_from_what_was_measured(inputs, verdicts, centring, moved, says):
    assert advice.next_step(
        replaced(with_refine(inputs, weight_displacement=moved), *verdicts, centring=centring)
    ).startswith(says)


def test_what_fell_beside_what_rose_is_to_be_weighed(inputs, monkeypatch):
    """The base is the better model only where nothing rose; here no mix is better than both."""
    monkeypatch.setattr(advice, "best_mix", lambda curve: 1.0)
    mixed = advice.next_step(replaced(inputs, "rose", "rose", "fell"))
    assert mixed.startswith("lower the rate (`refine.learning_rate: ")
    assert mixed.endswith("or weigh what fell against what rose.")
    assert advice.next_step(replaced(inputs, "still", "still", "fell")).endswith(
        "or stop: the base is the better model."
    )


def test_hard_choices_on_which_the_base_is_at_chance_say_nothing_of_its_captions(inputs):
    inputs = replaced(with_refine(inputs, weight_displacement=0.01), *["still"] * 3)
    for row in inputs.comparison:
        if row.adjusted_p is not None:
            object.__setattr__(
                row, "before", dataclasses.replace(row.before, kind="choice", chance=0.99, commonest=None)
            )
    assert not advice.next_step(inputs).startswith("check that captions and labels")


def test_headlines_on_which_no_change_would_show_are_named(inputs):
    inputs = replaced(with_refine(inputs, weight_displacement=0.01), *["still"] * 3)
    object.__setattr__(inputs.resolutions[0], "smallest", float("nan"))
    name = inputs.resolutions[0].measure.name
    line = verdict.resolution_line(inputs)
    assert line.startswith("A true change of ")
    assert line.endswith(f" On {name} not even a model that is always right would have been found so often.")
    assert advice.next_step(inputs).startswith(f"test on more images: on {name} not even a model that is always right")
    table = next(block for block in verdict.section(inputs) if block.kind == "table")
    assert table.rows[0].cells[-1].text == "–"
    for one in inputs.resolutions:
        object.__setattr__(one, "smallest", float("nan"))
    assert verdict.resolution_line(inputs).startswith(f"On {name}, ")


def test_the_number_of_images_that_would_do_grows_with_the_square(inputs):
    inputs = replaced(with_refine(inputs, weight_displacement=0.01), *["still"] * 3)
    worst = max(inputs.resolutions, key=lambda one: one.smallest)
    needed = float(advice.next_step(inputs).split("about ")[1].split(" instead of 120 ")[0].replace(",", ""))
    assert needed == pytest.approx(120 * (worst.smallest / 0.02) ** 2, rel=0.1)
    for one in inputs.resolutions:
        object.__setattr__(one, "smallest", 0.01)
    assert advice.next_step(inputs).startswith("stop, or try another recipe")


def test_the_verdict_says_what_the_set_could_have_shown(inputs):
    blocks = verdict.section(inputs)
    table = next(block for block in blocks if block.kind == "table")
    assert [row.cells[0].text for row in table.rows] == [one.measure.name for one in inputs.resolutions]
    for row, one in zip(table.rows, inputs.resolutions, strict=True):
        assert [cell.text for cell in row.cells[1:4]] == [f"{100 * share:.0f}\u00a0%" for share in one.found]
        assert list(one.found) == sorted(one.found)
    assert any(isinstance(block, Text) and block.text.startswith("**Next:** ") for block in blocks)
    assert "would have been found in four cases of five." in verdict.resolution_line(inputs)
