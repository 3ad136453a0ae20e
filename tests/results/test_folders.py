"""Reading evaluations: headlines and the items behind every measure, against the files."""

import numpy as np
import pytest

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.folders import CENTRED, PLAIN, Evaluation, Variant
from tests import example_results
from tests.small_sets import write


def test_headlines_are_log_ranks_and_ensemble_top_1(evaluations):
    found = {measure.key: measure for measure in Variant(evaluations[1]).headlines("eval")}
    assert list(found) == ["image_to_text_log_rank", "text_to_image_log_rank", "zero_shot_shape_top1"]
    stored = evaluations[1].results["sets"]["eval"]["variants"]["plain"]["measures"]
    rank = found["image_to_text_log_rank"]
    assert rank.interval._asdict().items() <= next(one for one in stored if one["key"] == rank.key).items()


def test_every_measure_is_the_mean_of_its_items(evaluations):
    """In both variants, so that the paired differences are differences of the printed numbers."""
    for name in (PLAIN, CENTRED):
        variant = Variant(evaluations[0], name)
        with_items = [measure for measure in variant.measures("eval") if measure.items]
        assert len(with_items) >= 8
        for measure in with_items:
            assert variant.mean(measure).value == pytest.approx(measure.interval.value, abs=1e-6), measure.key


def test_captions_are_resampled_with_their_image(evaluations):
    variant = Variant(evaluations[0])
    recall = next(m for m in variant.measures("eval") if m.key == "text_to_image_recall_at_1")
    unit = variant.evaluation.items("eval")["image_unit"]
    np.testing.assert_array_equal(variant.mean(recall).image_index, np.repeat(unit, example_results.PER_IMAGE))


def test_copies_of_an_image_are_resampled_as_one(evaluations):
    variant = Variant(evaluations[0])
    variant.evaluation.items("eval")  # read once, then kept
    arrays = variant.evaluation.items("eval")
    unit, known = arrays["image_unit"], arrays["image_unit"].copy()
    try:
        unit[5] = 2
        for measure in variant.headlines("eval"):
            found = variant.mean(measure).image_index
            assert 5 not in found
            per_image = example_results.PER_IMAGE if measure.unit == "caption" else 1
            assert (found == 2).sum() == (unit == 2).sum() * per_image
    finally:
        unit[:] = known


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Evaluation(tmp_path / "nowhere")


def test_results_of_another_version_are_refused_in_one_sentence(evaluations, tmp_path):
    """The first format knew numbers by the spelling of their names; it had no `format`."""
    for name, results in (
        ("older", {"model": "base", "sets": {"eval": {"variants": {"plain": {"retrieval": {}}}}}}),
        ("newer", {**evaluations[0].results, "format": 99}),
    ):
        with artifacts.output_directory(tmp_path / name, "evaluate") as place:
            artifacts.write_json(place("results.json"), results)
        with pytest.raises(
            UserError, match=f"{name}: results.json is in the format of another version; run `dvc repro`$"
        ):
            Evaluation(tmp_path / name)
    write(tmp_path / "newer/results.json", "[]")
    with pytest.raises(UserError, match=r"newer/results.json: .* bytes, manifest says .*; run `dvc repro -f evaluate`"):
        Evaluation(tmp_path / "newer")
