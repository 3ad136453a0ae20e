"""A converted model against transformers' own, on images and texts made here: preprocessing, tokenizer, forward pass.

The conversion says what it does not know; this catches what it does not know of.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.base.checkpoints import Tensors
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.features import row_difference

TOLERANCE = 1e-4  # relative; both compute in float32, in another order
_MODES = ("RGB", "L", "RGBA", "P")
_TEXTS = (
    "a photo of a cat",
    "A Photo of the Eiffel Tower, PARIS",
    "",
    "salt &amp; pepper &lt;b&gt;bold&lt;/b&gt; â€œquotesâ€\x9d",
    "Crème brûlée, naïve façade, ΟΔΟΣ, İstanbul, ﬁne",
    "a dog 🐕 and a family 👨‍👩‍👧 in 東京",
    "  spaces \t and\nlines\u00a0 it's 1234 don't!? <|endoftext|> after",
    "a very long caption of many words " * 30,
)


def check_images(clip: model.Clip, processor: Any, folder: Path) -> None:
    """Compare the pixels of `clip` with those of transformers' image processor, over sizes and kinds of images.

    Raises:
        UserError: They differ; names the image and by how much.
    """
    for image in _images(clip.image_size[0]):
        if image.has_transparency_data and not _puts_on_white(processor):
            continue  # older versions of transformers show what lies behind transparency
        found, expected = clip.normalize(_decode(clip, image)), _processed(processor, image)
        difference = _relative(found, expected)
        if not difference <= TOLERANCE:
            _refuse(folder, f"a {image.width} × {image.height} image of mode {image.mode}", difference)


def check_texts(clip: model.Clip, folder: Path) -> None:
    """Compare the token ids of `clip` with those of the folder's own tokenizer, its added tokens included.

    Raises:
        UserError: They differ, or an id has no row in the model's table; names the text.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no pad_token; name one in tokenizer_config.json, such as its end")
    rows, largest = clip.text_tower.token_embedding.num_embeddings, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {largest}, the model {rows} rows for them; save the model after "
            "resize_token_embeddings, or the tokenizer that belongs to it"
        )
    for text in [*_TEXTS, *(f"a photo of {token} on a hill" for token in tokenizer.get_added_vocab())]:
        found, expected = clip.tokenize([text]), _tokenized(tokenizer, [text], clip.context_length)["input_ids"]
        if not torch.equal(found, expected):
            share = (found != expected).float().mean().item() if found.shape == expected.shape else 1.0
            _refuse(folder, f"the token ids of {text[:40]!r}", share)


def check_features(clip: model.Clip, config: Any, theirs: Tensors, processor: Any, folder: Path) -> None:
    """Compare raw features of `clip` with those of a transformers.CLIPModel, each on its own pixels and token ids.

    Args:
        clip: The converted model.
        config: transformers.CLIPConfig of the model.
        theirs: Its tensors by transformers' names.
        processor: transformers' image processor; None: both get the same pixels.
        folder: Where the model comes from; its tokenizer is used where it has one.

    Raises:
        UserError: They differ; says which and by how much.
    """
    import transformers

    reference = transformers.CLIPModel(config).float().eval()
    reference.load_state_dict(theirs, strict=False)  # buffers may be missing; every weight was converted by name
    images = [image for image in _images(clip.image_size[0]) if image.mode == "RGB"]
    pixels = torch.cat([_decode(clip, image) for image in images])
    given = torch.cat([_processed(processor, image) for image in images]) if processor else clip.normalize(pixels)
    token_ids = clip.tokenize(list(_TEXTS))
    inputs = {"input_ids": token_ids}
    if "hf_tokenizer_name" in clip.config["model_cfg"]["text_cfg"]:
        inputs = _tokenized(_tokenizer(folder), list(_TEXTS), clip.context_length)
    with torch.no_grad():
        expected_image = reference.visual_projection(reference.vision_model(pixel_values=given).pooler_output)
        expected_text = reference.text_projection(reference.text_model(**inputs).pooler_output)
        pairs = {
            "image features": (clip.encode_image(pixels), expected_image),
            "text features": (clip.encode_text(token_ids), expected_text),
        }
    for what, (found, expected) in pairs.items():
        difference = row_difference(found, expected)
        if not difference <= TOLERANCE:
            _refuse(folder, what, difference)


def _refuse(folder: Path, what: str, difference: float) -> None:
    raise UserError(
        f"{folder}: converted, {what} would differ by {difference:.2g} (relative) from what transformers gives, so the "
        "model is not taken; use weights in open_clip's own format"
    )


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _images(side: int) -> list[Image.Image]:
    """Make images of a few shapes in each mode: smooth noise, transparent and opaque places."""
    shapes = ((side, side), (4 * side // 3 + 1, side), (side + 3, 3 * side + 2), (side // 2 + 1, side // 3 + 1))
    generator = np.random.default_rng(0)
    made = []
    for shape in shapes:
        noise = Image.fromarray(generator.integers(0, 256, (7, 9, 4), dtype=np.uint8), "RGBA")
        image = noise.resize(shape, Image.Resampling.BICUBIC)
        made += [image.convert(mode) if mode != "P" else image.convert("RGB").quantize(32) for mode in _MODES]
    return made


def _decode(clip: model.Clip, image: Image.Image) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "PNG")
    return torch.from_numpy(clip.decode(file.getvalue(), 1 << 30))[None]


def _puts_on_white(processor: Any) -> bool:
    clear, white = (Image.new("RGBA", (8, 8), colour) for colour in ((0, 0, 0, 0), (255, 255, 255, 255)))
    return torch.equal(_processed(processor, clear), _processed(processor, white))


def _processed(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"].float()


def _tokenizer(folder: Path) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise nearly every type on a broken file
        raise UserError(f"{folder}: its tokenizer cannot be read ({first_lines(error)})") from error


def _tokenized(tokenizer: Any, texts: list[str], length: int) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as open_clip does
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
