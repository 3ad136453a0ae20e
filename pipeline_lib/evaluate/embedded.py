"""A set as a model sees it: features of images, captions and prompts, and their directions, as they are or centred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib import metrics
from pipeline_lib.core.choices import Choice


@dataclass(frozen=True)
class EmbeddedTask:
    """A classification task of a set: K classes, P prompts per class, D features, N images."""

    classnames: tuple[str, ...]
    labels: torch.Tensor  # [N] int64; −1: the image has none
    raw_prompt_features: dict[str, torch.Tensor]  # "single" [K, 1, D], "ensemble" [K, P, D], perhaps "imagenet"

    @property
    def rows(self) -> torch.Tensor:
        """Numbers of the images that have a label: [n] int64."""
        return (self.labels >= 0).nonzero()[:, 0]


@dataclass(frozen=True)
class EmbeddedChoices:
    """The choices of a set: T distinct texts, none of them a caption of an image; each image and text by its row."""

    choices: Sequence[Choice]
    image_row: Mapping[str, int]  # by key of the image, into the set's image features
    text_row: Mapping[str, int]  # by text
    raw_text_features: torch.Tensor  # [T, D] float32


@dataclass(frozen=True)
class EmbeddedSet:
    """A set as the model sees it: N images, M captions, D features, all on the CPU. Everything is scored from this."""

    name: str
    digest: str  # of the set's manifest
    keys: tuple[str, ...]  # [N]
    image_hashes: tuple[str, ...]  # [N]
    captions: tuple[str, ...]  # [M], in the order of their images
    text_image_index: torch.Tensor  # [M] int64, each caption's image
    raw_image_features: torch.Tensor  # [N, D] float32
    raw_text_features: torch.Tensor  # [M, D] float32
    logit_scale: float
    tasks: dict[str, EmbeddedTask]
    choices: EmbeddedChoices | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_hashes)

    @property
    def is_captioned(self) -> bool:
        """Return whether every image has a caption, so that the set can be searched."""
        return len(self.text_image_index.unique()) == self.num_images

    @property
    def duplicates(self) -> dict[str, int]:
        """Count the images and captions that repeat an earlier one of the set, by content."""
        return {
            "images": len(self.image_hashes) - len(set(self.image_hashes)),
            "captions": len(self.captions) - len(set(self.captions)),
        }

    @property
    def image_units(self) -> np.ndarray:
        """Return for each image the row of the first of its content: [N] int64. Intervals and tests take it as one."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(sha256, row) for row, sha256 in enumerate(self.image_hashes)], dtype=np.int64)


class Means(NamedTuple):
    """Mean direction of each modality on the samples that centre others, [D]."""

    image: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class Directions:
    """The features of a set in one variant: as they are, or centred with the means of another set.

    Only their directions count: every metric normalises, so that no normalised copy of a large set is kept here.
    """

    image: torch.Tensor  # [N, D]
    text: torch.Tensor  # [M, D]
    means: Means | None

    @classmethod
    def of(cls, embedded: EmbeddedSet, means: Means | None) -> Directions:
        """Take the features of `embedded`, centred if there are `means`."""
        image, text = embedded.raw_image_features, embedded.raw_text_features
        if means is not None:
            image = metrics.mean_centre(image, means.image)
        return cls(image, _centred_texts(text, means), means)

    def texts(self, raw_text_features: torch.Tensor) -> torch.Tensor:
        """Return other texts [T, D], centred like captions."""
        return _centred_texts(raw_text_features, self.means)

    def classes(self, raw_prompt_features: torch.Tensor) -> torch.Tensor:
        """Return class directions [K, D] from prompts [K, P, D], centred like captions."""
        prompts = self.texts(raw_prompt_features.flatten(0, 1)).reshape(raw_prompt_features.shape)
        return metrics.class_embeddings(prompts)


def _centred_texts(raw_text_features: torch.Tensor, means: Means | None) -> torch.Tensor:
    if means is None or not len(raw_text_features):
        return raw_text_features
    return metrics.mean_centre(raw_text_features, means.text)


def modality_means(centring: EmbeddedSet) -> Means:
    """Return the means over the images and the captions of a set that has some."""
    return Means(metrics.modality_mean(centring.raw_image_features), metrics.modality_mean(centring.raw_text_features))
