"""Run a tower over rows without gradients: images or token ids in, raw features out, in passes of one size.

Why every pass has the same number of rows: a kernel is chosen by the shapes that it gets, and each adds its terms in an
order of its own. In a pass of another size a row's features would differ in their last bits, and so depend on how many
other rows there are. A pass that is not full is therefore filled up with copies of its first row, which are dropped
again. In passes of a multiple of 8 rows the features do not depend on a row's place in its pass either.

Texts need not run at their full length: sorted by length, each pass is cut after its own longest text, where
`Clip.text_cut_refusal` says that this is exact. Cut texts have the features of whole ones to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from pipeline_lib.model.clip import Clip

IMAGES_ON_CPU = 16  # in a pass: a convolution's activations of more leave the cache
CUT_MULTIPLE = 16  # tokens that a cut is rounded up to by default, so that shapes (and kernels) are few


def embed_images(clip: Clip, images: torch.Tensor, pass_size: int) -> torch.Tensor:
    """Return the raw features, float32 [n, D] on the CPU, of uint8 images [n, 3, H, W]."""
    if clip.device.type == "cpu":
        pass_size = min(pass_size, IMAGES_ON_CPU)
    return _embed(clip, clip.encode_image, images, pass_size)


def embed_texts(clip: Clip, token_ids: torch.Tensor, pass_size: int) -> torch.Tensor:
    """Return the raw features, float32 [n, D] on the CPU, of token ids [n, L], all of them at this length."""
    return _embed(clip, clip.encode_text, token_ids, pass_size)


def embed_texts_by_length(
    clip: Clip,
    token_ids: torch.Tensor,
    pass_size: int,
    *,
    multiple: int = CUT_MULTIPLE,
    watch: Callable[[Sequence[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> torch.Tensor:
    """Return what `embed_texts` does, to rounding, from passes over texts sorted by length, each cut at its longest.

    Args:
        clip: The model.
        token_ids: Whole token ids [n, L].
        pass_size: Rows in a pass.
        multiple: Tokens that a cut is rounded up to; 1 cuts right after the longest text.
        watch: Iterates over the passes (the rows of each): a place for a progress bar, or to stop between two.
    """
    lengths = clip.text_lengths(token_ids)
    order = lengths.argsort(stable=True)
    features = []
    for rows in watch(order.split(pass_size) if len(order) else ()):
        cut = cut_length(lengths[rows], token_ids.shape[1], multiple)
        features.append(embed_texts(clip, token_ids[rows, :cut], pass_size))
    return torch.cat(features)[order.argsort()] if features else torch.empty(0, clip.embed_dim)


def cut_length(lengths: torch.Tensor, context_length: int, multiple: int = CUT_MULTIPLE) -> int:
    """Return how many tokens texts of these lengths need together, rounded up to a multiple within the context."""
    longest = int(lengths.max()) if len(lengths) else 1
    return min(context_length, -(-longest // multiple) * multiple)


def _embed(
    clip: Clip, encode: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, pass_size: int
) -> torch.Tensor:
    features = []
    with torch.inference_mode():
        for some in rows.split(pass_size) if len(rows) else ():
            missing = pass_size - len(some)
            full = torch.cat([some, some[:1].expand(missing, *some.shape[1:])]) if missing else some
            features.append(encode(full.to(clip.device))[: len(some)].float().cpu())
    return torch.cat(features) if features else torch.empty(0, clip.embed_dim)
