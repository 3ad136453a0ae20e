"""Known answers are read from beside the set they are of."""

import json

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import known_answers
from pipeline_lib.sources.formats import open_evaluation_set
from pipeline_lib.sources.settings import EvaluationSet
from tests.small_sets import coco, data, image_folder, write


def test_known_answers_stand_beside_the_set_they_are_of(tmp_path):
    folder, answer = image_folder(tmp_path / "clothes"), {"value": 0.9, "tolerance": 0.01}
    pins = {"model": "12345678", "prompts": "0a0a0a0a", "num_images": 6}
    write(
        folder / "known_answers.json",
        json.dumps({"zero_shot_class_top1": [answer, {**answer, **pins}]}),
    )
    file = coco(tmp_path / "coco") / "annotations/captions_val2017.json"
    write(file.with_name("captions_val2017.known_answers.json"), json.dumps({"alignment": answer}))
    write(tmp_path / "own/eval.known_answers.json", json.dumps({"alignment": answer | {"value": 1}}))
    sets = {
        "folder": EvaluationSet(format="image_folder", path="clothes"),
        "file": EvaluationSet(format="coco", path="coco/annotations/captions_val2017.json"),
        "cut": EvaluationSet(format="image_folder", path="clothes", limit=2),
        "none": EvaluationSet(format="coco", path="coco"),
    }
    found = data(tmp_path / "own", "flickr", evaluation_root=str(tmp_path), evaluation=sets)
    assert {name: known_answers.read_known_answers(found, name) for name in (*sets, "eval", "val")} == {
        "folder": {"zero_shot_class_top1": [answer | {"model": None}, answer | pins]},
        "file": {"alignment": [answer | {"model": None}]},
        "cut": {},  # of the whole set, so not of a part of it
        "none": {},
        "eval": {"alignment": [answer | {"value": 1, "model": None}]},
        "val": {},
    }
    assert list(open_evaluation_set(found, "folder").samples), "the file is no class and no image"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", r"expected \{\"metric\""),
        ('{"alignment": 0.5}', "alignment: expected `value` and `tolerance`"),
        ('{"alignment": {"value": 0.5}}', "alignment: expected `value` and `tolerance`"),
        ('{"alignment": {"value": "0.5", "tolerance": 1}}', "alignment: expected `value` and `tolerance`"),
        ('{"alignment": {"value": 0.5, "tolerance": -1}}', "alignment: expected `value` and `tolerance`"),
        ('{"alignment": {"value": 0.5, "tolerance": NaN}}', "alignment: expected `value` and `tolerance`"),
        (f'{{"alignment": {{"value": 1{"0" * 400}, "tolerance": 1}}}}', "alignment: expected `value` and `tolerance`"),
        (
            '{"alignment": {"value": 0.5, "tolerance": 1, "weights": "x"}}',
            "alignment: expected `value` and `tolerance`",
        ),
        ('{"alignment": [{"value": 0.5, "tolerance": 1, "model": "1"}]}', "alignment: `model` must be"),
        (
            '{"alignment": {"value": 0.5, "tolerance": 1, "prompts": "0a0a0a0"}}',
            "alignment: `prompts` must be the first",
        ),
        ('{"alignment": {"value": 0.5, "tolerance": 1, "prompts": "cat, dog"}}', "alignment: `prompts` must be"),
        (
            '{"alignment": {"value": 0.5, "tolerance": 1, "num_images": true}}',
            "alignment: `num_images` must be a whole",
        ),
    ],
)
def test_what_is_no_known_answer(tmp_path, content, message):
    write(tmp_path / "eval.known_answers.json", content)
    with pytest.raises(UserError, match=rf"eval\.known_answers\.json: {message}"):
        known_answers.read_known_answers(data(tmp_path, "flickr"), "eval")
