"""A model of open_clip against transformers' own, on images and texts made here: pixels, token ids, features.

A conversion says what it does not know; this catches what it does not know of. A model that follows open_clip's
conventions (see `model.preprocess`) is compared on what both libraries mean to treat alike: no transparency, no margin
that rounds otherwise, no text that open_clip mends first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.base.checkpoints import Tensors
from pipeline_lib.base.kinds import KINDS
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.model.features import row_difference
from pipeline_lib.model.preprocess import CONVENTIONS

TOLERANCE = 1e-4  # relative; both compute in float32, in another order
NOT_TAKEN = "the model is not taken; use weights in open_clip's own format"
_MODES = ("RGB", "L", "RGBA", "P")
_TEXTS = (
    "a photo of a cat",
    "A Photo of the Eiffel Tower, PARIS",
    "",
    "Crème brûlée, naïve façade",
    "a dog 🐕 and a family 👨‍👩‍👧 in 東京",
    "  spaces \t and\nlines\u00a0 it's 1234 don't!?",
    "a very long caption of many words " * 30,
)
_MENDED = (  # by open_clip's own tokenizer, before it reads them
    "salt &amp; pepper &lt;b&gt;bold&lt;/b&gt; â€œquotesâ€\x9d",
    "ΟΔΟΣ, İstanbul, ﬁne",
    "<|endoftext|> after",
)


def check_images(clip: model.Clip, processor: Any, origin: Path | str, remedy: str = NOT_TAKEN) -> None:
    """Compare the pixels of `clip` with those of transformers' image processor, over sizes and kinds of images.

    Raises:
        UserError: They differ; names the image and by how much.
    """
    for image in _images(clip):
        if image.has_transparency_data and not _puts_on_white(processor):
            continue  # older versions of transformers show what lies behind transparency
        found, expected = clip.normalize(_decode(clip, image)), _processed(processor, image)
        difference = _relative(found, expected)
        if not difference <= TOLERANCE:
            what = f"a {image.width} × {image.height} image of mode {image.mode}"
            raise _refusal(origin, what, difference, remedy)


def check_texts(clip: model.Clip, tokenizer: Any, origin: Path | str, remedy: str = NOT_TAKEN) -> None:
    """Compare the token ids of `clip` with those of transformers' tokenizer, its added tokens included.

    Raises:
        UserError: They differ, or an id has no row in the model's table; names the text.
    """
    if tokenizer.pad_token_id is None:
        raise UserError(f"{origin}: its tokenizer has no pad_token; name one in tokenizer_config.json, such as its end")
    rows, largest = clip.text_tower.token_embedding.num_embeddings, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(
            f"{origin}: the tokenizer has ids up to {largest}, the model {rows} rows for them; save the model after "
            "resize_token_embeddings, or the tokenizer that belongs to it"
        )
    added = tokenizer.get_added_vocab() if _as_transformers(clip) else ()
    for text in [*_texts(clip), *(f"a photo of {token} on a hill" for token in added)]:
        differing = different_ids(clip, tokenizer, [text])
        if differing.any():
            raise _refusal(origin, f"the token ids of {text[:40]!r}", differing.float().mean().item(), remedy)


def different_ids(clip: model.Clip, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Return where the token ids of `clip` and of transformers' tokenizer differ, bool [N, L]; padding is padding."""
    found, given = clip.tokenize(list(texts)), tokenize(tokenizer, texts, clip.context_length)
    if "attention_mask" not in given:  # of SigLIP, to which padding is a token like others
        return found != given["input_ids"]
    padding = clip.tokenize([""])[0, -1]
    return found != given["input_ids"].where(given["attention_mask"].bool(), padding)


def check_features(
    clip: model.Clip,
    reference: Any,
    processor: Any,
    tokenizer: Any,
    origin: Path | str,
    remedy: str = NOT_TAKEN,
) -> float:
    """Compare raw features of `clip` with those of transformers' model, each on its own pixels and token ids.

    Args:
        clip: The model of open_clip.
        reference: That of transformers.
        processor: transformers' image processor; None: both get the same pixels.
        tokenizer: transformers' tokenizer; None: both get the same token ids.
        origin: What a message names.
        remedy: What it ends with.

    Returns:
        The largest relative difference of a row.

    Raises:
        UserError: They differ; says which and by how much.
    """
    images = [image for image in _images(clip) if image.mode == "RGB"]
    pixels = torch.cat([_decode(clip, image) for image in images])
    given = torch.cat([_processed(processor, image) for image in images]) if processor else clip.normalize(pixels)
    texts = _texts(clip)
    token_ids = clip.tokenize(texts)
    inputs = tokenize(tokenizer, texts, clip.context_length) if tokenizer else {"input_ids": token_ids}
    with torch.no_grad():
        expected_image = reference.vision_model(pixel_values=given).pooler_output
        expected_text = reference.text_model(**inputs).pooler_output
        if hasattr(reference, "visual_projection"):  # a CLIPModel; SigLIP's towers project themselves
            expected_image = reference.visual_projection(expected_image)
            expected_text = reference.text_projection(expected_text)
        differences = {
            "image features": row_difference(clip.encode_image(pixels), expected_image),
            "text features": row_difference(clip.encode_text(token_ids), expected_text),
            "the logit scale": _relative(clip.logit_scale, reference.logit_scale.exp().reshape(())),
        }
        if clip.logit_bias is not None:
            differences["the logit bias"] = _relative(clip.logit_bias, reference.logit_bias.reshape(()))
    for what, difference in differences.items():
        if not difference <= TOLERANCE:
            raise _refusal(origin, what, difference, remedy)
    return max(differences.values())


def make_reference(config: Any, tensors: Tensors) -> Any:
    """Make the CLIPModel or SiglipModel of its configuration and tensors by transformers' names, in float32."""
    import transformers

    reference = getattr(transformers, KINDS[config.model_type].model)(config).float().eval()
    reference.load_state_dict(tensors, strict=False)  # buffers may be missing; every weight was converted by name
    return reference


def _refusal(origin: Path | str, what: str, difference: float, remedy: str) -> UserError:
    return UserError(
        f"{origin}: converted, {what} would differ by {difference:.2g} (relative) between open_clip and transformers, "
        f"so {remedy}"
    )


def _as_transformers(clip: model.Clip) -> bool:
    return CONVENTIONS in clip.preprocess.config


def _texts(clip: model.Clip) -> list[str]:
    return [*_TEXTS, *(_MENDED if _as_transformers(clip) else ())]


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _images(clip: model.Clip) -> list[Image.Image]:
    """Make images of a few shapes in each mode: smooth noise, transparent and opaque places.

    By open_clip's conventions without transparency or a palette, and without a margin that its centre crop rounds up.
    """
    side = clip.image_size[0]
    shapes = [(side, side), (4 * side // 3 + 1, side), (side + 3, 3 * side + 2), (side // 2 + 1, side // 3 + 1)]
    modes: tuple[str, ...] = _MODES
    if not _as_transformers(clip):
        modes, shapes = _MODES[:2], [shape for shape in shapes if _margin(shape, side) % 4 != 3]
    generator = np.random.default_rng(0)
    made = []
    for shape in shapes:
        noise = Image.fromarray(generator.integers(0, 256, (7, 9, 4), dtype=np.uint8), "RGBA")
        image = noise.resize(shape, Image.Resampling.BICUBIC)
        made += [image.convert(mode) if mode != "P" else image.convert("RGB").quantize(32) for mode in modes]
    return made


def _margin(shape: tuple[int, int], side: int) -> int:
    """Return by how many pixels the longer edge exceeds `side` when the shorter one is resized to it."""
    return side * max(shape) // min(shape) - side


def _decode(clip: model.Clip, image: Image.Image) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "PNG")
    return torch.from_numpy(clip.decode(file.getvalue(), 1 << 30))[None]


def _puts_on_white(processor: Any) -> bool:
    clear, white = (Image.new("RGBA", (8, 8), colour) for colour in ((0, 0, 0, 0), (255, 255, 255, 255)))
    return torch.equal(_processed(processor, clear), _processed(processor, white))


def _processed(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"].float()


def read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a folder by transformers, without code of its own.

    Raises:
        UserError: It cannot be read.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise model.lacks_package(folder, error) from error
    except Exception as error:  # its readers raise nearly every type on a broken file
        raise UserError(f"{folder}: its tokenizer cannot be read ({first_lines(error)})") from error


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> Any:
    """Return `input_ids` and `attention_mask` [N, length] of texts by a tokenizer of transformers."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as open_clip does
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
