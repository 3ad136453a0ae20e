"""Made sets whose truth is known, as two models see them: what the verdict is calibrated on.

A world is a set of images with captions and classes, drawn as points; a model sees each point with noise of its own.
Two models with noise of one law are equally good by construction. All is drawn from one generator: equal seeds, equal
sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline_lib.evaluate.embedded import EmbeddedSet, EmbeddedTask

TASK, WIDTH = "class", 24  # the classification of every world; dimensions of one half of a model
SPREAD = 0.7  # of images around their class
NOISE, PROMPT_NOISE = 1.0, 0.5  # of a model, at images and captions, and at prompts


@dataclass(frozen=True)
class World:
    """What a set is like."""

    name: str
    num_images: int
    captions_per_image: int = 1
    num_classes: int = 10
    imbalance: float = 0.0  # class k has a share in proportion to 1 / (k + 1)^imbalance
    copied: float = 0.0  # share of the images that are copies of others, their captions too
    repeated: float = 0.0  # share of the captions whose text stands at another image as well


class Drawn(NamedTuple):
    """The points of a set: N images, M captions, K classes, D = `WIDTH` dimensions for each half of a model."""

    image: np.ndarray  # [N, 2 D]
    text: np.ndarray  # [M, 2 D]
    classes: np.ndarray  # [K, 2 D]
    labels: np.ndarray  # [N]
    image_unit: np.ndarray  # [N], equal for copies
    text_unit: np.ndarray  # [M], equal for texts that are the same
    text_image_index: np.ndarray  # [M]


class Noise(NamedTuple):
    """What a half of a model adds to the points that it sees, standard normal."""

    image: np.ndarray  # [N, D]
    text: np.ndarray  # [M, D]
    classes: np.ndarray  # [K, D]

    def mixed(self, other: Noise, share: float) -> Noise:
        """Return noise of the same law, correlated with this one by `share`."""
        rest = np.sqrt(1 - share**2)
        return Noise(*(share * own + rest * more for own, more in zip(self, other, strict=True)))


def draw(world: World, generator: np.random.Generator) -> Drawn:
    """Draw the points of a set."""
    n, per_image = world.num_images, world.captions_per_image
    weights = 1 / np.arange(1, world.num_classes + 1) ** world.imbalance
    labels = generator.choice(world.num_classes, n, p=weights / weights.sum())
    classes = generator.standard_normal((world.num_classes, 2 * WIDTH))
    image_unit = np.arange(n)
    copies = np.flatnonzero(generator.random(n) < world.copied)
    originals = np.setdiff1d(image_unit, copies)
    image_unit[copies] = generator.choice(originals, size=len(copies))
    labels = labels[image_unit]
    text_image_index = np.arange(n).repeat(per_image)
    text_unit = image_unit[text_image_index] * per_image + np.tile(np.arange(per_image), n)
    again = np.flatnonzero(generator.random(len(text_unit)) < world.repeated)
    text_unit[again] = text_unit[generator.integers(len(text_unit), size=len(again))]
    points = classes[labels] + SPREAD * generator.standard_normal((n, 2 * WIDTH))[image_unit]
    owner = image_unit[text_unit // per_image]  # what a text that stands twice says is of the first image
    return Drawn(points, points[owner], classes, labels, image_unit, text_unit, text_image_index)


def draw_noise(drawn: Drawn, generator: np.random.Generator) -> Noise:
    """Draw the noise of a half of a model: equal images and texts get the same."""
    image, text = (generator.standard_normal((len(unit), WIDTH))[unit] for unit in (drawn.image_unit, drawn.text_unit))
    return Noise(image, text, generator.standard_normal((len(drawn.classes), WIDTH)))


def see(drawn: Drawn, noise: Noise, half: int = 0) -> EmbeddedSet:
    """Return a set as one half of a model sees it: the points in its dimensions, with its noise."""
    dims = slice(half * WIDTH, (half + 1) * WIDTH)
    image, text, classes = (
        torch.from_numpy((points[:, dims] + size * own).astype(np.float32))
        for points, size, own in (
            (drawn.image, NOISE, noise.image),
            (drawn.text, NOISE, noise.text),
            (drawn.classes, PROMPT_NOISE, noise.classes),
        )
    )
    names = tuple(map(str, range(len(drawn.classes))))
    return EmbeddedSet(
        name="world",
        digest="",
        keys=tuple(map(str, range(len(drawn.image)))),
        image_hashes=tuple(map(str, drawn.image_unit)),
        captions=tuple(map(str, drawn.text_unit)),
        text_image_index=torch.from_numpy(drawn.text_image_index),
        raw_image_features=image,
        raw_text_features=text,
        logit_scale=100.0,
        tasks={TASK: EmbeddedTask(names, torch.from_numpy(drawn.labels), {"ensemble": classes[:, None]})},
    )


def permuted(drawn: Drawn, generator: np.random.Generator) -> Drawn:
    """Return a set whose captions and labels belong to other images."""
    order = generator.permutation(len(drawn.image))
    return drawn._replace(image=drawn.image[order], image_unit=np.arange(len(order)))
