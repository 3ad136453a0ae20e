"""pipeline_lib.export.served_model: a folder by transformers' conventions is served as `model.load` reads it."""

import io
import json
import types

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.export.served_model import ServedClip
from tests.tiny_model import write_tiny_hf_clip


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_and_token_ids_are_those_of_the_loaded_model(resize_mode, tmp_path):
    """Odd margins, transparency and HTML entities, in which plain open_clip differs."""
    folder = write_tiny_hf_clip(tmp_path / "model")
    config = json.loads((folder / model.CONFIG).read_text())
    config["preprocess_cfg"] |= {"conventions": "transformers", "resize_mode": resize_mode}
    (folder / model.CONFIG).write_text(json.dumps(config))
    clip, served = model.load(folder), ServedClip()
    served.load_context(types.SimpleNamespace(model_config=None, artifacts={"clip": str(folder)}))
    for size, mode in (((43, 32), "RGB"), ((70, 51), "RGBA"), ((20, 47), "LA"), ((64, 90), "L")):
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise, "RGBA").convert(mode).save(file, "PNG")
        pixels = clip.normalize(torch.from_numpy(clip.decode(file.getvalue(), 10**6))[None])[0]
        assert torch.equal(served._pixels(file.getvalue()), pixels)
    texts = ["a cat &amp; a dog", "the red house"]
    assert torch.equal(served.tokenizer(texts), clip.tokenize(texts))
    assert not torch.equal(clip.tokenize(texts[:1]), clip.tokenize(["a cat & a dog"]))
