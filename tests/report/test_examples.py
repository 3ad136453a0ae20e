"""The examples: which images they are, and what is shown of them."""

import io

import numpy as np
from PIL import Image

from pipeline_lib.report import examples
from pipeline_lib.report.examples import THUMBNAIL, nearest_caption, thumbnail
from pipeline_lib.report.page import Gallery
from tests import example_results


def gallery(inputs, title):
    return next(
        block for block in examples.show_examples(inputs) if isinstance(block, Gallery) and block.title == title
    )


def test_examples_are_those_whose_rank_changed_most(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch, num_examples=5)
    before, after = (e.items("eval")["image_to_text_rank"] for e in (inputs.base, inputs.refined))
    by_ratio = sorted(range(len(before)), key=lambda row: (-before[row] / after[row], row))
    found = gallery(inputs, "Rank improved most").examples
    assert [example.lines[0] for example in found] == [f"place {before[i]:g} → {after[i]:g}" for i in by_ratio[:5]]
    assert [example.caption for example in found] == [f"thing number {i} <b>" for i in by_ratio[:5]]
    worse = gallery(inputs, "Rank worsened most").examples
    assert all(float(e.lines[0].split()[1]) < float(e.lines[0].split()[3]) for e in worse)


def test_nearest_caption_equals_a_slow_search():
    rng = np.random.default_rng(0)
    features = {"raw_image_features": rng.normal(size=(6, 4)), "raw_text_features": rng.normal(size=(9, 4))}
    for image, caption in nearest_caption(features, [1, 4]).items():
        one = features["raw_image_features"][image]
        scores = [one @ text / np.linalg.norm(text) / np.linalg.norm(one) for text in features["raw_text_features"]]
        assert caption == int(np.argmax(scores))


def test_thumbnail_is_small_and_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (1000, 500), (255, 0, 0, 0)).save(buffer, "PNG")
    thumb = Image.open(io.BytesIO(thumbnail(buffer.getvalue())))
    assert thumb.size == (THUMBNAIL, THUMBNAIL // 2)
    assert min(thumb.getpixel((0, 0))) > 250
