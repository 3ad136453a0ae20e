"""A project of any size: tars of noise with captions, a set of many classes, a set of many captions, a tiny model."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests import small_sets
from tests.bench.inputs import caption
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import write_params

CAPTIONS = 20  # of each image of the captioned set
SAMPLES_PER_IMAGE = 200  # training samples for one image of the captioned set


class Size(NamedTuple):
    """How large a project is."""

    samples: int
    shards: int
    classes: int

    def tenth(self) -> "Size":
        """A tenth of everything."""
        return Size(*(max(1, number // 10) for number in self))


def make(folder: Path, size: Size) -> Path:
    """Write the sets, the model and params.yaml."""
    generator = np.random.default_rng(0)
    write_training(folder / "set", size, generator)
    write_classes(folder / "more/classes", size.classes, generator)
    write_captioned(folder / "more/captioned", max(8, size.samples // SAMPLES_PER_IMAGE), generator)
    write_tiny_clip(folder / "clip", seed=1)
    sets = {
        "classes": {"format": "clip_benchmark", "path": "classes"},
        "captioned": {"format": "jsonl", "path": "captioned"},
    }
    write_params(
        folder,
        data__format="webdataset",
        data__annotations=None,
        data__parts={"refine": 0.9, "val": 0.05, "eval": 0.05},
        data__evaluation=sets,
        cache_teacher__chunk_size=64,
        cache_teacher__text_cut="chunk",
        cache_teacher__verify_share=0.02,
        refine__batch_size=64,
        runtime__num_workers=1,
        evaluate__bootstrap_samples=1000,
        evaluate__wise_ft=[0.5],
    )
    return folder


def images(generator: np.random.Generator, count: int) -> Iterator[bytes]:
    """PNG files of 16 x 16 pixels, each another."""
    for pixels in generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        yield file.getvalue()


def write_training(folder: Path, size: Size, generator: np.random.Generator) -> None:
    """Tars of image, caption pairs, all captions different."""
    for number, rows in enumerate(np.array_split(np.arange(size.samples), size.shards)):
        members: dict[str, bytes | str] = {}
        for row, image in zip(rows, images(generator, len(rows)), strict=True):
            members |= {f"{row:08d}.png": image, f"{row:08d}.txt": f"{caption(generator)} {row}"}
        small_sets.tar(folder / f"{number:05d}.tar", members)


def write_classes(folder: Path, count: int, generator: np.random.Generator) -> None:
    """clip-benchmark's layout, an image of each class."""
    members: dict[str, bytes | str] = {}
    for label, image in enumerate(images(generator, count)):
        members |= {f"s{label:07d}.png": image, f"s{label:07d}.cls": str(label)}
    small_sets.tar(folder / "test/0.tar", members)
    small_sets.write(folder / "test/nshards.txt", "1")
    small_sets.write(folder / "classnames.txt", "".join(f"{caption(generator)} {label}\n" for label in range(count)))
    small_sets.write(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of the {c}.\n")


def write_captioned(folder: Path, count: int, generator: np.random.Generator) -> None:
    """JSON Lines with many captions an image."""
    lines = []
    for number, image in enumerate(images(generator, count)):
        small_sets.write(folder / f"{number:06d}.png", image)
        captions = [caption(generator) for _ in range(CAPTIONS)]
        lines.append(json.dumps({"image": f"{number:06d}.png", "captions": captions}))
    small_sets.write(folder / "captions.jsonl", "\n".join(lines) + "\n")
