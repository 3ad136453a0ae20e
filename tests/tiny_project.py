"""A whole project in a temporary folder: small real images with captions, a tiny model, params.yaml, all six stages.

The images are drawn (a coloured shape on a coloured ground), so that captions truly describe them; the model is
`tiny_model`'s. Everything else is the project's own code on the project's own params.yaml, with the values below.
"""

import json
import shutil
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from pipeline_lib.core import config
from tests.tiny_model import write_tiny_clip

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SHAPES = ("circle", "square", "line", "cross")
STAGES = ("base", "shard", "cache_teacher", "refine", "evaluate", "report")


def draw(path, index):
    """One 40x48 image; the index also sets a few pixels, so that no two images are equal."""
    colour, ground = COLOURS[index % 8], COLOURS[(index // 8 + index + 1) % 8]
    image = Image.new("RGB", (40, 48), ground)
    pen = ImageDraw.Draw(image)
    box = (8 + index % 3, 8 + index % 5, 30, 36)
    shape = SHAPES[index // 2 % 4]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=4)
        if shape == "cross":
            pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=4)
    for bit in range(12):
        image.putpixel((bit, 0), (255 * (index >> bit & 1),) * 3)
    image.save(path)
    return colour, shape, ground


def write_set(directory, num_samples):
    """Images and `captions.jsonl` with two or three captions each, and a label for zero-shot."""
    directory.mkdir(parents=True)
    with (directory / "captions.jsonl").open("w") as file:
        for index in range(num_samples):
            name = f"{index:04d}.png"
            colour, shape, ground = draw(directory / name, index)
            captions = [f"a {colour} {shape}", f"{shape} in {colour} on {ground}", f"drawing number {index}"]
            file.write(json.dumps({"image": name, "captions": captions[: 2 + index % 2], "label": shape}) + "\n")


def change(params, values):
    """`params` with dotted keys replaced; every key must be there."""
    for dotted, value in values.items():
        block = params
        *path, last = dotted.split(".")
        for key in path:
            block = block[key]
        assert last in block, dotted
        block[last] = value
    return params


DEFAULTS = {
    "data.format": "jsonl",
    "data.root": "set",
    "data.annotations": "captions.jsonl",
    "data.parts": {"refine": 0.5, "val": 0.2, "eval": 0.3},
    "data.evaluation_root": "more",
    "data.evaluation": {},
    "base.source": "local_dir",
    "base.path": "clip",
    "shard.samples_per_shard": 16,
    "cache_teacher.chunk_size": 8,
    "cache_teacher.text_cut": "set",
    "cache_teacher.verify_share": 0.2,
    "refine.batch_size": 8,
    "refine.text_cut": "set",
    "refine.learning_rate": 1e-3,
    "evaluate.prompt": "a photo of a {}",
    "evaluate.bootstrap_samples": 50,
    "evaluate.linear_probe": False,
    "evaluate.few_shot": None,
    "evaluate.wise_ft": [],
    "runtime.num_workers": 0,
    "runtime.num_threads": 1,
    "runtime.progress": False,
    "runtime.device": "cpu",
    "tracking.mode": "disabled",
}


def write_params(project, **values):
    """params.yaml of `project`: the repository's own, with the tiny values and then `values` (dots as `__`)."""
    params = change(config.read_params(ROOT / "params.yaml"), DEFAULTS)
    params = change(params, {key.replace("__", "."): value for key, value in values.items()})
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False).replace("1e-", "1.0e-"))
    return project / "params.yaml"


def make_project(project, *, num_samples=96, model=None, **values):
    """A project folder that holds everything but the stages' outputs."""
    project.mkdir(parents=True, exist_ok=True)
    write_set(project / "set", num_samples)
    (project / "more").mkdir()
    (project / "more" / "README").write_text("evaluation sets go here\n")  # git keeps no empty folder
    if model is None:
        write_tiny_clip(project / "clip", seed=1)
    else:
        shutil.copytree(model, project / "clip")
    write_params(project, **values)
    return project
