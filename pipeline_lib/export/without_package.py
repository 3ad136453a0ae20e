"""A joined model where this package is not: the numbers that say how its texts are read, and Python lines that do so.

Both are made from the loaded language model, so that nothing need be found out again: which tokens stand around a text,
which are pooled, how many of the text are read.
"""

from __future__ import annotations

import textwrap
from typing import Any

from pipeline_lib.model import JoinedClip, is_described
from pipeline_lib.model.joined import TEXT_SIDE

START = """\
import open_clip, torch, transformers
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, normalize

{place}
weights = load_file(f"{{folder}}/open_clip_model.safetensors")
tokenizer = transformers.AutoTokenizer.from_pretrained(f"{{folder}}/language")
language = transformers.AutoModel.from_pretrained(f"{{folder}}/language", dtype=torch.float32).eval()
"""
BIDIRECTIONAL = "language.config.is_causal = False\n"
TEXT = """
@torch.no_grad()
def encode_text(text):  # raw features [{embed_dim}]
    ids = tokenizer({text}, add_special_tokens=False)["input_ids"][:{room}]
    states = language(input_ids=torch.tensor([[{before}*ids{after}]])).last_hidden_state[0]
{pool}{adapter}
"""
POOL = {
    "mean": "    x = states[torch.tensor([{pools_before}*[True] * len(ids){pools_after}])].mean(0)\n",
    "last": "    x = states[-1]\n",
    "cls": "    x = states[0]\n",
}
MATRIX = 'return linear(x, weights["text.adapter.proj.weight"])'
BLOCKS = """\
part = lambda name: [weights[f"text.adapter.{{name}}.weight"], weights[f"text.adapter.{{name}}.bias"]]
x = normalize(x, dim=-1)
for block in range({depth}):
    inner = linear(layer_norm(x, x.shape, *part(f"blocks.{{block}}.norm")), *part(f"blocks.{{block}}.widen"))
    x = x + linear(gelu(inner), *part(f"blocks.{{block}}.narrow"))
return linear(layer_norm(x, x.shape, *part("norm")), *part("proj"))"""
IMAGE = """{first}
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}", load_weights=False{more})
model.visual.load_state_dict({{name[7:]: weights[name] for name in weights if name.startswith("visual.")}})
encode_image = torch.no_grad()(model.visual.eval())  # of preprocess(image)[None]: raw features [1, D]
logit_scale = weights["logit_scale"].exp()"""
DESCRIBED = """
import json
vision_cfg = json.load(open(f"{folder}/open_clip_config.json"))["model_cfg"]["vision_cfg"]
vision_cfg["timm_model_name"] = f"local-dir:{folder}\""""


def reading(clip: JoinedClip) -> dict[str, Any]:
    """Return how texts are read, as JSON values: `before` and `after` are token ids, `room` is the text's own."""
    language = clip.language()
    by_itself, causal = language.attention
    return {
        **language.frame._asdict(),
        "room": language.room,
        "pooling": language.reading.pooling,
        "bidirectional": by_itself and not causal,
        "padding": language.padding,
        "depth": clip.config[TEXT_SIDE]["adapter"]["depth"],
    }


def lines(clip: JoinedClip, place: str) -> str:
    """Return Python lines that encode texts and images with torch, transformers, safetensors and open_clip alone.

    Args:
        clip: Whose folder it is.
        place: The line that gives the variable `folder` its value.
    """
    values = reading(clip)
    around = {key: "".join(f"{value}, " for value in values[key]) for key in ("before", "pools_before")}
    around |= {key: "".join(f", {value}" for value in values[key]) for key in ("after", "pools_after")}
    depth = values["depth"]
    text = TEXT.format(
        embed_dim=clip.embed_dim,
        room=values["room"],
        text=f"{values['lead']!r} + text" if values["lead"] else "text",
        pool=POOL[values["pooling"]].format(**around),
        adapter=textwrap.indent(BLOCKS.format(depth=depth) if depth else MATRIX, "    "),
        **around,
    )
    described = is_described(clip.config["model_cfg"]["vision_cfg"], clip.directory)
    image = IMAGE.format(first=DESCRIBED if described else "", more=",\n    vision_cfg=vision_cfg" if described else "")
    return START.format(place=place) + (BIDIRECTIONAL if values["bidirectional"] else "") + text + image
