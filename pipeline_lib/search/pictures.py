"""The images that are searched: those of an evaluated set, whose features are stored, or of any folder of images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline_lib import model, terminal
from pipeline_lib.core import shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import MODELS, Paths
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import embed_images
from pipeline_lib.results.folders import Array, Evaluation
from pipeline_lib.results.gap import unit_rows
from pipeline_lib.sources.samples import extension_of
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS

MAX_PIXELS = 100_000_000  # of an image of a folder
BATCH = 64
THUMBNAIL = 320  # pixels


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    row: int
    name: str
    cosine: float
    other_place: int  # its place, from 1, with the other model


class Pictures:
    """N images, and both models to look for them with."""

    def __init__(self, models: dict[str, Clip], names: Sequence[str], read: Callable[[int], bytes]) -> None:
        """Take models by their names in `MODELS`, the images' names, and how image number n is read."""
        self.models, self.names, self._read = models, names, read
        self.directions: dict[str, Array] = {}  # unit features [N, D] by model

    @classmethod
    def of_set(cls, paths: Paths, name: str | None) -> Pictures:
        """Take the images of an evaluated set; of the first where `name` is None.

        Raises:
            UserError: It was not evaluated, or not with these models.
        """
        evaluations = {one: Evaluation(paths.eval / one) for one in MODELS}
        known = list(evaluations["base"].all_sets)
        if (name := name or next(iter(evaluations["base"].sets))) not in known:
            raise UserError(f"--set: `{name}` was not evaluated; there are {', '.join(known)}")
        part = shards.read_part(paths.shards / name)
        entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
        found = cls(
            _load(paths), [entry.key for _, entry in entries], lambda n: entries[n][0].read_image(entries[n][1])
        )
        for one, evaluation in evaluations.items():
            features = evaluation.features(name)["raw_image_features"]
            if len(features) != len(entries):
                raise UserError(f"{evaluation.directory}: has {len(features)} images of {name}, and {part.directory} "
                                f"has {len(entries)}; run `dvc repro`")  # fmt: skip
            found.directions[one] = unit_rows(features)
        return found

    @classmethod
    def of_folder(cls, paths: Paths, folder: Path) -> Pictures:
        """Embed the images of a folder and of those in it with both models; what does not decode is left out.

        Raises:
            UserError: There is none.
        """
        files = [Path(top, name) for top, _, names in os.walk(folder) for name in names]
        files = sorted(path for path in files if extension_of(path.name) in IMAGE_EXTENSIONS)
        models, kept, features = _load(paths), list[Path](), {one: list[torch.Tensor]() for one in MODELS}
        for start in terminal.progress(range(0, len(files), BATCH), label="embed"):
            decoded = [(path, _decode(path, models)) for path in files[start : start + BATCH]]
            whole = [(path, images) for path, images in decoded if images is not None]
            kept += [path for path, _ in whole]
            for one, clip in models.items() if whole else ():
                stacked = torch.from_numpy(np.stack([images[one] for _, images in whole]))
                features[one].append(embed_images(clip, stacked, BATCH))
        if not kept:
            raise UserError(f"{folder}: no image in it that can be decoded")
        names = [str(path.relative_to(folder)) for path in kept]
        found = cls(models, names, lambda number: kept[number].read_bytes())
        found.directions = {one: unit_rows(torch.cat(parts).numpy()) for one, parts in features.items()}
        return found

    def __len__(self) -> int:
        """Count the images."""
        return len(self.names)

    def search(self, query: str, count: int) -> dict[str, list[Hit]]:
        """Return, for each model, the images whose cosine with the text is largest, best first."""
        cosines = {one: self.directions[one] @ self._direction(one, query) for one in self.models}
        orders = {one: np.argsort(-values, kind="stable") for one, values in cosines.items()}
        places = {one: np.argsort(order, kind="stable") for one, order in orders.items()}
        other = dict(zip(MODELS, reversed(MODELS), strict=True))
        return {
            one: [
                Hit(row, self.names[row], float(cosines[one][row]), int(places[other[one]][row]) + 1)
                for row in order[:count].tolist()
            ]
            for one, order in orders.items()
        }

    def _direction(self, one: str, query: str) -> Array:
        clip = self.models[one]
        with torch.inference_mode():
            features = clip.encode_text(clip.tokenize([query]))
        return unit_rows(features.numpy())[0]

    def thumbnail(self, row: int) -> bytes:
        """Return an image as a small JPEG.

        Raises:
            IndexError: There is no such row.
        """
        with Image.open(io.BytesIO(self._read(range(len(self))[row]))) as file:
            image = file.convert("RGBA")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        white = Image.new("RGBA", image.size, "white")
        buffer = io.BytesIO()
        Image.alpha_composite(white, image).convert("RGB").save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


def _load(paths: Paths) -> dict[str, Clip]:
    return {"base": model.load(paths.base), "refined": model.load(paths.refined)}


def _decode(path: Path, models: dict[str, Clip]) -> dict[str, np.ndarray] | None:
    try:
        data = path.read_bytes()
        return {one: clip.decode(data, MAX_PIXELS) for one, clip in models.items()}
    except (OSError, ValueError):
        return None
