"""Known answers are held to the model that they name, within their tolerance."""

import math
from types import SimpleNamespace

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.evaluate import known_answers


def test_known_answers_are_those_of_the_model_that_they_name():
    facts = {"weights_digest": "ab12" * 16, "source": {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "tag"}}

    def check(name="recall", number=0.5, known_by=None, **answer):
        answers = {name: [{"value": 0.51, "tolerance": 0.02, "model": known_by, **answer}]}
        part = SimpleNamespace(name="eval", manifest={"known_answers": answers})
        known_answers.check_known_answers(part, {"recall": number}, facts)

    known_answers.check_known_answers(SimpleNamespace(name="eval", manifest={}), {"recall": 0.5}, facts)
    check()
    for model_name in (None, "ab12ab12", "ViT-B-32/tag"):
        check(known_by=model_name)
        with pytest.raises(
            UserError, match=r"eval: the base model scores recall 0\.5, its known answer is 0\.51 ± 0\.001"
        ):
            check(known_by=model_name, tolerance=0.001)
    for model_name in ("ab12ab13", "ViT-B-32/other"):
        check(known_by=model_name, tolerance=0.001)
    with pytest.raises(UserError, match=r"its known answer"):
        check(number=math.nan)
    with pytest.raises(UserError, match=r"eval: known answers: no metric 'recal'; there are recall"):
        check(name="recal")
