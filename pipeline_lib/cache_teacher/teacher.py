"""The frozen teacher as the loop asks it: the features of a batch, from the cache or computed on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.statistics import read_statistics
from pipeline_lib.core import runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.model import Clip
from pipeline_lib.model.embed import embed_images, embed_texts
from pipeline_lib.model.features import Features, Inputs


@dataclass(frozen=True)
class Teacher:
    """What a cache says of its teacher, and the teacher itself where the cache holds no features."""

    logit_scale: torch.Tensor
    mean: torch.Tensor | None = None  # [D] of its raw features, both modalities
    std: torch.Tensor | None = None  # [D]
    online: Clip | None = None
    precision: str = "fp32"  # of `online`
    chunk_size: int = 64  # rows in one pass of `online`

    @classmethod
    def of_cache(
        cls, paths: Paths, settings: CacheTeacherSettings, manifest: dict[str, Any], student: Clip, teacher: Clip
    ) -> Teacher:
        """Make the teacher of the cache in `paths.teacher`, made with `settings`, whose manifest is `manifest`.

        Raises:
            UserError: It is to run online, but reads other inputs than the student.
        """
        stats = read_statistics(paths.teacher)
        return cls(
            logit_scale=torch.tensor(manifest["teacher_logit_scale"]),
            mean=stats.get("mean"),
            std=stats.get("std"),
            online=_frozen(paths.base, student, teacher) if settings.mode == "online" else None,
            precision=settings.precision,
            chunk_size=settings.chunk_size,
        )

    def features(
        self,
        inputs: Inputs,
        cached: tuple[torch.Tensor, torch.Tensor] | None,
        num_rows: int,
        world: World,
        like: torch.Tensor,
    ) -> Features:
        """Return the raw features of a whole batch, on the device and in the dtype of `like`.

        Args:
            inputs: What this process embeds of the batch, if the teacher is online.
            cached: Features of images and texts [num_rows, D] from the cache.
            num_rows: Rows of the whole batch.
            world: The processes that share the batch.
            like: A tensor of the student.

        Raises:
            UserError: There are neither cached features nor an online teacher.
        """
        if self.online is not None:
            with runtime.arithmetic(self.precision, like.device):
                own = (
                    embed_images(self.online, inputs.images, self.chunk_size),
                    embed_texts(self.online, inputs.texts, self.chunk_size),
                )
            image, text = (torch.cat(world.gather_rows(x.to(like.device), num_rows)) for x in own)
        elif cached is not None:
            image, text = cached
        else:
            raise UserError("the cache holds no features (cache_teacher.mode: online); run the teacher online")
        return Features(image.to(like), text.to(like), self.logit_scale.to(like))


def _frozen(base: Path, student: Clip, teacher: Clip) -> Clip:
    """Return the teacher, or a copy where it is the student, whose weights are about to move."""
    if teacher is student:
        return model.load(base, device=student.device)
    if any(teacher.facts[k] != student.facts[k] for k in ("preprocess", "tokenizer_digest")):
        raise UserError("cache_teacher.mode: `online` needs a teacher with the base's preprocessing and tokenizer")
    return teacher
