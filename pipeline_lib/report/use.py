"""What comes after a run: the lines that use the refined model, and where to go on; printed below the table."""

from __future__ import annotations

import textwrap
from pathlib import Path

USE = """\
from PIL import Image
from pipeline_lib.model import open_folder

model, preprocess, tokenizer = open_folder("{folder}")
image = model.encode_image(preprocess(Image.open("photo.jpg"))[None], normalize=True)
texts = model.encode_text(tokenizer(["a red bicycle", "two dogs on a hill"]), normalize=True)
print((model.logit_scale.exp() * image @ texts.T).softmax(dim=-1))
"""
GO_ON = {
    "python -m examples.own_images": "the same on images of your own, from top to bottom",
    "python -m pipeline_lib.export --help": "for the hub, transformers, MLflow or ONNX",
    "make ui": "every run and its curves",
    "make ablate SEEDS=0..2": "every recipe, three seeds",
}


def what_next(folder: Path, page: Path) -> str:
    """Return the lines that use the model in `folder`, and the commands to go on with."""
    width = max(map(len, GO_ON))
    commands = "\n".join(f"{command:{width}}  {what}" for command, what in GO_ON.items())
    own = f"{'README.md':{width}}  your own model and data"
    parts = {"Page": str(page), "Use it": USE.format(folder=folder), "Go on": f"{commands}\n{own}"}
    return "\n\n".join(f"{name}\n{textwrap.indent(text.rstrip(), '    ')}" for name, text in parts.items())
