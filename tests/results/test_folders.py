"""Reading evaluations: headlines and the items behind every measure, against the files."""

import numpy as np
import pytest

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.folders import CENTRED, PLAIN, Evaluation, Variant
from tests import example_results


def test_headlines_are_recall_at_1_and_ensemble_top_1(evaluations):
    found = {measure.key: measure for measure in Variant(evaluations[1]).headlines("eval")}
    assert list(found) == ["image_to_text_recall_at_1", "text_to_image_recall_at_1", "zero_shot_shape_top1"]
    stored = evaluations[1].results["sets"]["eval"]["variants"]["plain"]["measures"]
    recall = found["image_to_text_recall_at_1"]
    assert recall.interval._asdict().items() <= next(one for one in stored if one["key"] == recall.key).items()


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
    images = example_results.SIZES["eval"]
    np.testing.assert_array_equal(
        variant.mean(recall).image_index, np.repeat(np.arange(images), example_results.PER_IMAGE)
    )


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
