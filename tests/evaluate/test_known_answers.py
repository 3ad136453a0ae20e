"""Known answers are held to the model, prompts and images that they name, within their tolerance."""

import dataclasses
import math

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import Part, prompts_digest
from pipeline_lib.evaluate import known_answers, published
from pipeline_lib.model import imagenet_templates
from pipeline_lib.results.measure import Measure
from tests.evaluate.test_evaluate import SETTINGS

FACTS = {"weights_digest": "ab12" * 16, "source": {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "tag"}}
TOP1 = "zero_shot_class_top1"


def part(answers=None, *, num_samples=10, num_captions=0, name="eval", **manifest):
    known = {"known_answers": answers} if answers else {}
    return Part(None, {"name": name, "num_samples": num_samples, "num_captions": num_captions, **known, **manifest})


def check(name="recall", number=0.5, *, measured_with=None, **answer):
    """What is found where `answer` is the one known and `number` was measured."""
    of_set = part({name: [{"value": 0.51, "tolerance": 0.02, "model": None, **answer}]})
    prompts = {"recall": measured_with} if measured_with else {}
    return known_answers.check_known_answers(of_set, {"recall": number}, prompts, FACTS)


def test_known_answers_are_those_of_the_model_that_they_name():
    assert known_answers.check_known_answers(part(), {"recall": 0.5}, {}, FACTS) == []
    for model_name in (None, "ab12ab12", "ViT-B-32/tag"):
        (row,) = check(model=model_name)
        assert row == {
            "set": "eval",
            "metric": "recall",
            "value": 0.5,
            "expected": 0.51,
            "tolerance": 0.02,
            "source": "known_answers.json",
            "met": True,
        }
        with pytest.raises(
            UserError, match=r"eval: the base model scores recall 0\.5, its known answer is 0\.51 ± 0\.001"
        ):
            check(model=model_name, tolerance=0.001)
    for model_name in ("ab12ab13", "ViT-B-32/other"):
        assert check(model=model_name, tolerance=0.001) == []
    with pytest.raises(UserError, match=r"its known answer"):
        check(number=math.nan)
    with pytest.raises(UserError, match=r"eval: known answers: no metric 'recal'; there are recall"):
        check(name="recal")


def test_an_answer_for_other_prompts_or_images_is_skipped_aloud(caplog):
    digest = prompts_digest(["cat"], ["a {}"])
    assert check(measured_with=digest, prompts=digest[:8], num_images=10)[0]["met"]
    with pytest.raises(UserError, match="its known answer"):
        check(measured_with=digest, prompts=digest, num_images=10, tolerance=0.001)
    assert not caplog.messages
    assert check(measured_with=digest, prompts="0a0a0a0a", tolerance=0) == []
    assert caplog.messages.pop() == (
        f"eval: known answer of recall is skipped: it is for prompts 0a0a0a0a, measured was with prompts {digest[:16]}"
    )
    caplog.clear()
    assert check(prompts="0a0a0a0a", num_images=1000, tolerance=0) == []
    (line,) = caplog.messages
    assert line.endswith("measured was without prompts; it is for 1,000 images, the set has 10")


@pytest.mark.parametrize("ensemble", ["set", "openai", "both"])
def test_prompts_are_those_that_each_number_was_measured_with(ensemble, caplog):
    """Not the set's own where section `evaluate` takes others."""
    own, classnames, prompt = ["a {}", "the {}"], ["cat", "hot dog"], SETTINGS.prompt
    of_set = part(tasks={"pet": {"classnames": classnames, "templates": own}})
    settings = dataclasses.replace(SETTINGS, ensemble=ensemble)
    kinds = ["single", "ensemble", *(["imagenet"] if ensemble == "both" else [])]
    measures = [
        Measure("eval", k, k, "zero_shot", 0.5, is_headline=k == "ensemble", task="pet", prompt=k) for k in kinds
    ]
    measures.append(Measure("eval", "recall", "R@1", "recall", 0.5))
    with caplog.at_level("INFO"):
        found = known_answers.prompts_by_metric(of_set, measures, settings)
    of_ensemble = own if ensemble != "openai" else imagenet_templates()
    expected = {"single": [prompt], "ensemble": of_ensemble} | (
        {"imagenet": imagenet_templates()} if ensemble == "both" else {}
    )
    digests = {kind: prompts_digest(classnames, templates) for kind, templates in expected.items()}
    assert found == digests | {f"mean_centred_{kind}": digest for kind, digest in digests.items()}
    assert caplog.messages == [f"eval: ensemble was measured with prompts {digests['ensemble'][:16]}"]


def test_a_published_score_that_is_missed_is_a_warning(monkeypatch, caplog):
    digest = prompts_digest(["cat"], ["a {}"])
    answers = [
        {"model": "ViT-B-32/tag", "value": 0.51, "tolerance": 0.003, "runs": {"table 7": 0.51}},
        {"model": "ViT-B-16/tag", "value": 0.99, "tolerance": 0.003, "runs": {"table 7": 0.99}},
    ]
    one = {"num_images": 10, "prompts": digest, "answers": {TOP1: answers, "not_measured": answers}}
    monkeypatch.setattr(published, "read_table", lambda: {"sets": {"cats": one}})
    own = {TOP1: [{"value": 0.5, "tolerance": 0.1, "model": None}]}

    def found(number, known=None, **changes):
        with caplog.at_level("INFO"):
            return known_answers.check_known_answers(part(known, **changes), {TOP1: number}, {TOP1: digest}, FACTS)

    (row,) = found(0.509)
    assert (row["met"], row["source"]) == (True, "published: cats")
    assert caplog.messages.pop() == (
        f"eval: the base model scores {TOP1} 0.509, as is published for cats (0.51 ± 0.003)"
    )
    both = found(0.5, own)
    assert [row["met"] for row in both] == [True, False]
    assert caplog.records[-1].levelname == "WARNING"
    assert caplog.messages[-1].startswith(
        f"eval: the base model scores {TOP1} 0.5, but ViT-B-32/tag is published to score 0.51 ± 0.003 on cats, which "
        "this set is by its class names, templates and number of images (table 7); check the weights"
    )
    assert found(0.5, num_samples=11) == []
