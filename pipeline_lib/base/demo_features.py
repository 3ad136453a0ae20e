"""What the demo's towers give for its samples before their projections: read ahead by processes, embedded once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from pipeline_lib import model, terminal
from pipeline_lib.core import artifacts, images, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.read_ahead import read_ahead
from pipeline_lib.model.embed import embed_images, embed_texts_by_length
from pipeline_lib.sources.samples import Sample

log = logging.getLogger(__name__)
MAX_PIXELS = 100_000_000  # of an image of part `base`, which is in no shard and so not held to `shard.max_image_pixels`
MAX_BAD_SHARE = 0.01
PASS_SIZE = 64  # rows that a tower sees at once
READ_SIZE = 16  # samples that a process reads at once


class Pairs(NamedTuple):
    """Tower features of N images and their M captions, before any projection."""

    image_features: torch.Tensor  # [N, Di]
    text_features: torch.Tensor  # [M, Dt]
    text_image_index: torch.Tensor  # [M], each caption's image


def tower_features(
    clip: model.Clip, samples: Sequence[Sample], *, num_workers: int = 0, progress: bool = False
) -> tuple[Pairs, list[dict[str, str]]]:
    """Return what both towers give for `samples` before their projections, and the images' keys and hashes.

    A sample without a caption, or whose image cannot be read, is left out with a warning.

    Raises:
        UserError: More than `MAX_BAD_SHARE` of them are left out.
    """
    pixels: list[torch.Tensor] = []
    captions: list[str] = []
    owners: list[int] = []
    trained_on: list[dict[str, str]] = []
    bad: list[str] = []
    for sample, read in zip(samples, _read_all(clip, samples, num_workers, progress), strict=True):
        if isinstance(read, str):
            bad.append(read)
            log.warning("left out of the base's training: %s", read)
            continue
        image, facts = read
        pixels.append(image)
        owners += [len(trained_on)] * len(sample.captions)
        captions += sample.captions
        trained_on.append(facts)
    if len(bad) > MAX_BAD_SHARE * len(samples):
        raise UserError(f"data: {len(bad)} of {len(samples)} samples of part `base` are unusable ({bad[0]})")
    head, projection = clip.module.visual.head, clip.module.text.proj
    clip.module.visual.head = clip.module.text.proj = nn.Identity()
    try:
        pairs = Pairs(
            _embed_images(clip, pixels, progress), _embed_texts(clip, captions, progress), torch.tensor(owners)
        )
    finally:
        clip.module.visual.head, clip.module.text.proj = head, projection
    return pairs, trained_on


Read = tuple[torch.Tensor, dict[str, str]] | str  # pixels and what is known of the image, or why it cannot be used


class _Chunks:
    """Samples read, `READ_SIZE` an item. Picklable, so that processes may read."""

    def __init__(self, samples: Sequence[Sample], preprocess: model.Preprocess) -> None:
        self.samples, self.preprocess = samples, preprocess

    def __getitem__(self, index: int) -> list[Read]:
        return [self._read(sample) for sample in self.samples[index * READ_SIZE : (index + 1) * READ_SIZE]]

    def __len__(self) -> int:
        return -(-len(self.samples) // READ_SIZE)

    def _read(self, sample: Sample) -> Read:
        try:
            data = sample.image.read()
            pixels = torch.from_numpy(self.preprocess.decode(data, MAX_PIXELS))
            if not sample.captions:
                raise ValueError("no caption")
        except (OSError, ValueError) as error:
            return f"{sample.key}: {error}"
        pixels_digest = images.pixels_digest(images.open_rgb(data)).hex()
        return pixels, {"key": sample.key, "sha256": artifacts.sha256_bytes(data), "pixels": pixels_digest}


def _read_all(clip: model.Clip, samples: Sequence[Sample], num_workers: int, progress: bool) -> Iterator[Read]:
    """Read samples in order, ahead of what is asked for."""
    chunks = read_ahead(_Chunks(samples, clip.preprocess), num_workers=num_workers)
    with terminal.progress(None, label="decode", total=len(samples), unit="img", enabled=progress) as bar:
        for chunk in runtime.until_stopped(chunks):
            yield from chunk
            bar.update(len(chunk))


def _embed_images(clip: model.Clip, pixels: list[torch.Tensor], progress: bool) -> torch.Tensor:
    starts = range(0, len(pixels), PASS_SIZE)
    passes = terminal.progress(starts, label="embed images", enabled=progress)
    return torch.cat(
        [
            embed_images(clip, torch.stack(pixels[start : start + PASS_SIZE]), PASS_SIZE)
            for start in runtime.until_stopped(passes)
        ]
    )


def _embed_texts(clip: model.Clip, captions: list[str], progress: bool) -> torch.Tensor:
    def watch(passes: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        return runtime.until_stopped(terminal.progress(passes, label="embed captions", enabled=progress))

    number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    features = embed_texts_by_length(clip, clip.tokenize([*number]), PASS_SIZE, multiple=1, watch=watch)
    return features[[number[caption] for caption in captions]]
