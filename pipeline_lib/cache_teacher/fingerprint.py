"""What a cached number depends on: a cache is read only where all of it is still the same."""

from __future__ import annotations

from typing import Any

from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.model import Clip, JoinedClip


def fingerprint(student: Clip, teacher: Clip, settings: CacheTeacherSettings, shards_digest: str) -> dict[str, Any]:
    """Return everything on which a cached number depends, as JSON values."""

    def facts(clip: Clip) -> dict[str, Any]:
        return {k: clip.facts[k] for k in ("config_digest", "preprocess", "tokenizer_digest", "quick_gelu")}

    return {
        "shards": shards_digest,
        "teacher": {**facts(teacher), "weights_digest": teacher.facts["weights_digest"]},
        "student_input": {k: student.facts[k] for k in ("preprocess", "tokenizer_digest")},
        "mode": settings.mode,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "chunk_size": settings.chunk_size,
        "text_cut": settings.text_cut,
        **_of_language(student, settings),
    }


def _of_language(student: Clip, settings: CacheTeacherSettings) -> dict[str, Any]:
    if not isinstance(student, JoinedClip):
        return {}
    return {"language": student.language_facts, "language_dtype": settings.language_dtype}


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """List what differs between the fingerprint of a cache and the one that is expected, one line each."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        return [line for k in keys for line in differences(found.get(k), expected.get(k), f"{path}.{k}".strip("."))]
    return [] if found == expected else [f"{path}: cache has {found!r}, now {expected!r}"]
