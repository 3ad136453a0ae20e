"""Near duplicates: evaluated images that the teacher can hardly tell from one that was trained on.

`shard` leaves out what is the same picture, by its pixels. Another crop, a mirror image or the next frame of a film it
does not see; their features lie close together. Every evaluated image is compared with every image of the teacher cache
by the cosine of their features, the mean of part `refine` taken from both: all features of a model share much of their
direction, so that without it a cosine of 0.95 is near for one model and far for another. The features of evaluated
images are the base's, so the teacher must be the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.folders import Array, Evaluation

BLOCK = 2**24  # cosines held at a time: 64 MB
NAMED = 3  # pairs in a message; all of them are in FILE
FILE = "near_duplicates.jsonl"  # a `Pair` a line


class Pair(NamedTuple):
    """An evaluated image and the trained one that is nearest to it."""

    set: str
    key: str
    part: str  # of the trained one
    trained_key: str
    cosine: float  # of the centred features

    def __str__(self) -> str:
        return f"{self.key} and {self.trained_key} of {self.part}: {self.cosine:.3f}"


@dataclass(frozen=True)
class NearDuplicates:
    """What was found, the nearest pair of each set first."""

    pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)  # by evaluated set; every one that was compared
    unknown: str = ""  # why nothing was compared


class Trained:
    """The features of a part in the teacher cache, a shard at a time, in the order of its images."""

    def __init__(self, teacher: Path, part: shards.Part, manifest: Mapping[str, Any]) -> None:
        """Find the files of `part` below `teacher`.

        Raises:
            UserError: They are not what `manifest`, that of the cache, lists, or were made from other shards.
        """
        self.part, self.files = part, list[Path]()
        for index, (shard, record) in enumerate(zip(part.shards, manifest["parts"][part.name]["units"], strict=True)):
            name = f"{part.name}/{index:05d}.safetensors"
            artifacts.check_file(teacher, name, manifest)
            if record["shard"] != shard.sha256:
                raise UserError(f"{teacher / name}: made from another shard than {shard.path}; run `dvc repro`")
            self.files.append(teacher / name)

    def units(self) -> Iterator[tuple[Array, Array]]:
        """Yield features [n, D] with unit rows, 0 for an image that does not decode, and which do: bool [n]."""
        for path in self.files:
            with safetensors.safe_open(path, framework="np") as unit:
                features, valid = unit.get_tensor("image_features"), unit.get_tensor("valid").astype(bool)
            yield _unit_rows(features.astype(np.float32)) * valid[:, None], valid

    def mean(self) -> Array:
        """Return the mean direction: [D]."""
        total, count = np.zeros(1), 0
        for features, valid in self.units():
            total, count = total + features.sum(axis=0, dtype=np.float64), count + int(valid.sum())
        return (total / max(1, count)).astype(np.float32)

    def centred(self, mean: Array) -> Iterator[Array]:
        """Yield features [n, D] with unit rows, centred; 0 for an image that does not decode."""
        for features, valid in self.units():
            yield centred(features, mean) * valid[:, None]

    def keys(self, rows: set[int]) -> dict[int, str]:
        """Return the keys of the images at `rows`."""
        return {row: entry.key for row, entry in enumerate(self.part.entries()) if row in rows} if rows else {}


def centred(features: Array, mean: Array) -> Array:
    """Return the directions of features [N, D] from the mean direction [D]: unit rows."""
    return _unit_rows(_unit_rows(features) - mean)


def _unit_rows(rows: Array) -> Array:
    """Divide rows [N, D] by their norm; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(features: Array, units: Iterator[Array]) -> tuple[Array, Array]:
    """Find the nearest of all rows of the units for each row of features, block by block.

    Args:
        features: [N, D], unit rows.
        units: Arrays [n, D], unit rows; their rows are counted on from one to the next.

    Returns:
        The cosine [N], −1 where there is none, and the number of the row [N].
    """
    cosine, row, start = np.full(len(features), -1, np.float32), np.zeros(len(features), np.int64), 0
    step = max(1, BLOCK // max(1, len(features)))
    for unit in units:
        for first in range(0, len(unit), step):
            cosines = features @ unit[first : first + step].T
            at = cosines.argmax(axis=1)
            value = np.take_along_axis(cosines, at[:, None], axis=1)[:, 0]
            nearer = value > cosine
            cosine[nearer], row[nearer] = value[nearer], start + first + at[nearer]
        start += len(unit)
    return cosine, row


def find(
    base: Evaluation, evaluated: Mapping[str, shards.Part], all_shards: Path, teacher: Path, threshold: float
) -> NearDuplicates:
    """Compare the images of the evaluated sets with those in the teacher cache.

    Args:
        base: The base model's evaluation, whose features are compared.
        evaluated: Sets by name.
        all_shards: Folder of the shards, for the parts that are in the cache.
        teacher: Folder of the cache.
        threshold: Cosine above which two images are near duplicates.

    Raises:
        UserError: Cache and shards do not belong together, or either was changed.
    """
    manifest = artifacts.read_manifest(teacher, stage="cache_teacher")
    made_with = manifest.get("fingerprint", {})
    if made_with.get("mode") != "cached":
        return NearDuplicates(unknown="the teacher's features are not cached (`cache_teacher.mode`)")
    if made_with["teacher"]["weights_digest"] != base.results["weights_digest"]:
        return NearDuplicates(unknown="the teacher is another model than the base (`cache_teacher.teacher`)")
    trained = [Trained(teacher, part, manifest) for part in shards.read_training_parts(all_shards)]
    mean = trained[0].mean()
    features = {name: centred(base.features(name)["raw_image_features"], mean) for name in evaluated}
    joined = np.concatenate(list(features.values()))
    of_part = [nearest(joined, one.centred(mean)) for one in trained]
    part = np.argmax([cosine for cosine, _ in of_part], axis=0)
    cosine, row = (np.choose(part, [found[i] for found in of_part]) for i in (0, 1))
    near = cosine > threshold
    keys = [one.keys(set(row[near & (part == i)].tolist())) for i, one in enumerate(trained)]
    pairs, start = dict[str, list[Pair]](), 0
    for name, rows in features.items():
        own = [
            Pair(name, entry.key, trained[part[at]].part.name, keys[part[at]][int(row[at])], float(f"{cosine[at]:.4f}"))
            for at, entry in enumerate(evaluated[name].entries(), start)
            if near[at]
        ]
        pairs[name], start = sorted(own, key=lambda pair: (-pair.cosine, pair.key)), start + len(rows)
    return NearDuplicates(pairs)


def check(found: NearDuplicates, evaluated: Mapping[str, shards.Part], most: float) -> None:
    """Refuse sets of which too many images nearly repeat one that was trained on.

    Raises:
        UserError: A larger share than `most` does; names the nearest pairs.
    """
    for name, pairs in found.pairs.items():
        number = evaluated[name].num_samples
        if len(pairs) > most * number:
            raise UserError(
                f"{len(pairs)} of the {number} images of `{name}` nearly repeat one that was trained on "
                f"({'; '.join(map(str, pairs[:NAMED]))}), more than report.max_near_duplicate_share ({most:g}) allows; "
                f"take them out of the set, or raise it: {FILE} beside the page then lists them all"
            )


def sentences(found: NearDuplicates, threshold: float) -> list[str]:
    """Say how many near duplicates each set has, where it has some; or why it is not known."""
    if found.unknown:
        return [f"Near duplicates of trained images were not looked for: {found.unknown}."]
    return [
        f"{len(pairs)} image{'s' if len(pairs) > 1 else ''} of {name} nearly repeat{'' if len(pairs) > 1 else 's'} one "
        f"that was trained on, by features (cosine above {threshold:g}): kept, and named in "
        f"{FILE} beside this page; nearest: {pairs[0]}."
        for name, pairs in found.pairs.items()
        if pairs
    ]


def file(found: NearDuplicates) -> dict[str, bytes]:
    """Return `FILE` with all pairs, by name; nothing where there are none."""
    lines = [artifacts.canonical_json(pair._asdict()) + "\n" for pairs in found.pairs.values() for pair in pairs]
    return {FILE: "".join(lines).encode()} if lines else {}
