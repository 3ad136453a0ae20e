"""The examples: which images they are, and what is shown of them."""

import io
import re

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pipeline_lib.model import Preprocess
from pipeline_lib.report import examples
from pipeline_lib.report.examples import THUMBNAIL, cut_off, nearest_caption, thumbnail
from pipeline_lib.report.page import Gallery, Text
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


PREPROCESS = {**example_results.PREPROCESS, "size": [40, 60]}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shown(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(float)


def test_an_example_shows_what_the_model_got(project, monkeypatch):
    """The page's image against open_clip's own transform, whose normalisation is taken back."""
    inputs = example_results.read_report_inputs(project, monkeypatch, num_examples=1)
    config = inputs.manifests["base"]["model"]["preprocess"]
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    example = gallery(inputs, "Rank improved most").examples[0]
    row = int(re.search(r"number (\d+)", example.caption)[1])
    [shard] = inputs.parts["eval"].shards
    image = Image.open(io.BytesIO(shard.read_image(shard.samples()[row])))
    expected = 255 * (0.5 + 0.5 * transform(image).permute(1, 2, 0).numpy())
    assert shown(example.jpeg).shape == expected.shape == (*config["size"], 3)
    assert np.abs(shown(example.jpeg) - expected).mean() < 4  # JPEG
    said = [block.text for block in examples.show_examples(inputs) if isinstance(block, Text)]
    assert "Images are shown as both models got them, 48 × 48 pixels before normalisation" in said[0]


def test_what_is_larger_than_the_page_shows_is_scaled_down():
    pixels = np.zeros((3, 2 * THUMBNAIL, THUMBNAIL), np.uint8)
    pixels[0] = 200
    found = shown(thumbnail(pixels))
    assert found.shape == (THUMBNAIL, THUMBNAIL // 2, 3)
    assert np.abs(found.mean((0, 1)) - [200, 0, 0]).max() < 3


@pytest.mark.parametrize(("size", "side"), [((300, 40), 0), ((400, 250), 0), ((60, 40), 0), ((40, 300), 1)])
def test_cut_off_is_the_share_that_the_crop_leaves_out(size, side):
    """An image as bright as its pixels are far from the middle: the brightest pixel left tells how much is."""
    far = np.abs(np.linspace(-1, 1, size[side]))
    ramp = np.broadcast_to(far if side == 0 else far[:, None], size[::-1])
    image = png(Image.fromarray((255 * ramp).astype(np.uint8)).convert("RGB"))
    left = Preprocess(PREPROCESS).decode(image, 10**6).max() / 255
    assert 1 - cut_off(image, PREPROCESS) == pytest.approx(left, abs=0.03)
    for mode in ("longest", "squash"):
        assert cut_off(image, {**PREPROCESS, "resize_mode": mode}) == 0


def test_much_cut_off_is_said():
    pixels = np.zeros((3, 4, 4), np.uint8)
    lines = {cut: examples._example("x", thumbnail(pixels), cut, "c", [1, 2], ["a", "b"]).lines for cut in (0.25, 0.4)}
    assert len(lines[0.25]) == 3
    assert lines[0.4][3] == "40\u00a0% of the image cut off"
