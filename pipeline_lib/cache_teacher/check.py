"""Check the teacher cache before anybody reads it: each unit, each part, and a sample of rows computed again."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from pipeline_lib import losses
from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.unit import Content
from pipeline_lib.core import runtime, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.model import Clip, JoinedClip
from pipeline_lib.model.embed import embed_images, embed_texts
from pipeline_lib.model.features import fault, row_difference

FEATURES = {"image_features": "dtype", "text_features": "dtype", "language_features": "language_dtype"}
FEWEST_ROWS = 16  # computed again: a fault of the whole part (model, preprocessing, precision) shows in each of them
MOST_ROWS = 2048  # their logits are matrices of rows x rows, in double precision


def check_unit(unit: Content, name: str) -> None:
    """Check counts, finiteness and non-zero norms of a unit, before it is written.

    Raises:
        UserError: The features mean nothing.
    """
    num_samples, num_captions = len(unit["valid"]), int(unit["caption_offsets"][-1])
    for key in _features(unit):
        rows = num_samples if key == "image_features" else num_captions
        if len(unit[key]) != rows:
            raise AssertionError(f"{name}: {len(unit[key])} rows of {key}, expected {rows}")
        if problem := fault(_used(unit, key), num_distinct=1):  # a shard may hold one image or caption many times
            raise UserError(f"{name}: {key}: {problem}; check the weights and cache_teacher.{FEATURES[key]}")


def check_spread(units: Iterable[Content], name: str) -> None:
    """Check that a whole part has not one and the same row for all its images, or for all its captions.

    Raises:
        UserError: All images, or all captions, have one feature vector.
    """
    first: dict[str, torch.Tensor] = {}
    counts, varying = collections.Counter[str](), set()
    for unit in units:
        for key in _features(unit):
            features = _used(unit, key)
            counts[key] += len(features)
            if len(features) and bool((features != first.setdefault(key, features[:1])).any()):
                varying.add(key)
    for key, count in counts.items():
        if count > 1 and key not in varying:
            raise UserError(f"{name}: one and the same vector for all {count} {key}; check the weights and the data")


def _features(unit: Content) -> list[str]:
    return [key for key in FEATURES if key in unit]


def _used(unit: Content, key: str) -> torch.Tensor:
    return unit[key][unit["valid"].bool()] if key == "image_features" else unit[key]


def check_share(part: shards.Part, faults: Sequence[str], max_bad_share: float) -> None:
    """Refuse a part of which more images than `max_bad_share` do not decode; `faults` has the reason of each.

    Raises:
        UserError: There are more; says how many and names the first.
    """
    share = len(faults) / max(1, part.num_samples)
    if share > max_bad_share:
        raise UserError(
            f"{part.directory}: {len(faults)} of {part.num_samples} images cannot be decoded "
            f"({'; '.join(faults[:3])}); mend them, or raise cache_teacher.max_bad_share"
        )


def verify(part: CachedPart, teacher: Clip, settings: CacheTeacherSettings) -> dict[str, float]:
    """Compute a sample of rows again from the shards and compare features, the HyCD loss and its gradient.

    Returns:
        Largest relative difference of the features (by row norm), of the loss and of its gradient, and the row count.

    Raises:
        UserError: A difference is larger than the stored precision allows.
    """
    rows = _sample(part, settings)
    count = len(rows)
    stored = part.read_features(rows, [0] * count)
    if stored is None:
        return {"features": 0.0, "loss": 0.0, "gradient": 0.0, "rows": 0.0}
    found_rows = list(part.entries(rows))
    most = part.part.max_image_pixels
    images = np.stack([teacher.decode(shard.read_image(entry), most) for shard, entry in found_rows])
    token_ids = teacher.tokenize([entry.captions[0] for _, entry in found_rows])[:, : part.teacher_text_length]
    with runtime.arithmetic(settings.precision, teacher.device):
        image_features = embed_images(teacher, torch.from_numpy(images), min(count, settings.chunk_size))
        text_features = embed_texts(teacher, token_ids, min(count, settings.chunk_size))
    found = _compare(stored, (image_features, text_features))
    bound = _bound(settings, settings.dtype)
    for name, limit in {"features": bound, "loss": bound / 10, "gradient": bound * 10}.items():
        _refuse_above(limit, found[name], name)
    return {**found, "rows": float(count)}


def verify_language(part: CachedPart, student: JoinedClip, settings: CacheTeacherSettings) -> dict[str, float]:
    """Read the first captions of a sample of rows again with the language model, and compare features.

    Returns:
        Largest relative difference of a caption's features.

    Raises:
        UserError: It is larger than the stored precision allows.
    """
    rows = _sample(part, settings)
    stored = part.read_inputs(rows, [0] * len(rows)).texts
    token_ids = student.tokenize([entry.captions[0] for _, entry in part.entries(rows)])[:, : part.text_length]
    with runtime.arithmetic(settings.precision, student.device):
        fresh = embed_texts(student, token_ids, min(len(rows), settings.chunk_size))
        difference = row_difference(fresh, stored)
    _refuse_above(_bound(settings, settings.language_dtype), difference, "features of the language model")
    return {"language_features": difference}


def _sample(part: CachedPart, settings: CacheTeacherSettings) -> np.ndarray:
    wanted = min(MOST_ROWS, round(settings.verify_share * len(part)))
    count = min(len(part.valid_rows), max(FEWEST_ROWS, wanted))
    return np.sort(np.random.default_rng(0).choice(part.valid_rows, size=count, replace=False))


def _bound(settings: CacheTeacherSettings, dtype: str) -> float:
    exact = (dtype, settings.precision) == ("float32", "fp32")
    return (1e-4 if exact else 2e-2) if settings.verify_tolerance is None else settings.verify_tolerance


def _refuse_above(limit: float, difference: float, what: str) -> None:
    if not difference <= limit:
        raise UserError(
            f"cache_teacher: recomputed {what} differ by {difference:.2e}, more than {limit:.0e} "
            "(cache_teacher.verify_tolerance); run `dvc repro -f cache_teacher` on this machine"
        )


def _compare(stored: tuple[torch.Tensor, torch.Tensor], fresh: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    feature_difference = max(row_difference(*pair) for pair in zip(stored, fresh, strict=True))
    values, gradients = [], []
    for image_features, text_features in (stored, fresh):
        student_logits = (fresh[0].double() @ fresh[1].double().T).requires_grad_()
        loss = losses.hycd_loss(student_logits, image_features.double() @ text_features.double().T)
        gradients.append(torch.autograd.grad(loss, student_logits)[0])
        values.append(loss.item())
    scale = max(abs(values[1]), 1e-12)
    gradient = float((gradients[0] - gradients[1]).norm() / gradients[1].norm().clamp_min(1e-30))
    return {"features": feature_difference, "loss": abs(values[0] - values[1]) / scale, "gradient": gradient}
