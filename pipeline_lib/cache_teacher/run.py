"""Fill the teacher cache: tokenise, decode, embed, a group of shards at a time, going on at the next after a stop.

A killed stage starts again at the first group with a unit that is not whole. Processes of one world take every n-th
group. See `unit` for what is written, and `reader` for why it is exact.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline_lib import model, terminal
from pipeline_lib.cache_teacher import check, pixels
from pipeline_lib.cache_teacher.chunks import decode_ahead, store_pixels
from pipeline_lib.cache_teacher.fingerprint import fingerprint
from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.statistics import feature_statistics, write_statistics
from pipeline_lib.cache_teacher.student import load_student
from pipeline_lib.cache_teacher.tokens import TextCuts, choose_cuts, count_truncated, tokenize
from pipeline_lib.cache_teacher.unit import Group, Unit, count_images, group_units
from pipeline_lib.cache_teacher.writer import write_group
from pipeline_lib.core import artifacts, provenance, runtime, shards, work_folders
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.core.truncation import describe_truncation
from pipeline_lib.model import Clip, JoinedClip
from pipeline_lib.model.features import raw_norms_problem

log = logging.getLogger(__name__)
PASSES = 4  # in a group at least, so that the last one, which is filled up, is a small part of all
COUNTS = ("num_samples", "num_captions")
Units = Mapping[str, Sequence[Unit]]  # of each part by its name, in the order of the shards


def run(
    paths: Paths, settings: CacheTeacherSettings, how: RuntimeSettings, world: World, code_digest: str
) -> dict[str, Any]:
    """Fill `paths.teacher` from `paths.base` and `paths.shards`, verify a sample, publish; store pixels beside it.

    Returns:
        `digest` of the cache's manifest and `metrics` for the tracker; {} on processes other than the first.

    Raises:
        UserError: Input is missing or broken, too many images do not decode, or the verification fails.
    """
    device = runtime.pick_device(how.device)
    base, student = load_student(paths, device)
    teacher = base if settings.teacher == "base" else model.load(Path(settings.teacher), device=device)
    parts = shards.read_training_parts(paths.shards)
    shards_digest = artifacts.read_manifest(paths.shards, stage="shard")["digest"]
    identity = fingerprint(student, teacher, settings, shards_digest)
    stores_pixels = not world.any(not _pixels_fit(parts, student, settings, paths))
    made_by = [code_digest, provenance.package_versions(), device.type, torch.get_num_threads()]
    named = world.first_of(artifacts.digest([identity, made_by]))
    work = work_folders.work_directory("cache_teacher", named, paths.teacher)
    if world.is_main:
        needed = _bytes_needed(parts, student, teacher, settings, stores_pixels=stores_pixels)
        work_folders.check_room(work, needed - work_folders.bytes_in(work))
    units = units_of(parts, work, student, stores_pixels=stores_pixels)
    started = time.perf_counter()
    cuts = fill(units, student, teacher, settings, how, world)
    seconds = time.perf_counter() - started
    facts = _facts(parts, units, cuts, settings)
    if not world.is_main:
        world.barrier()
        return {}
    measured = _complete(work, parts, facts, identity, teacher) | {"seconds": seconds}
    counts = (sum(part[name] for part in facts["parts"].values()) for name in COUNTS)
    log.info("%d images and %d captions in %.0f s", *counts, seconds)
    for name, part in facts["parts"].items():
        for reader, found in part.get("truncated", {}).items():
            log.warning("%s", describe_truncation(f"captions of {name}", found, reader))
    measured |= _verify(CachedPart(work / "teacher", None, parts[0], student), student, teacher, settings)
    if stores_pixels:
        of_what = pixels.pixels_identity(student.preprocess, parts[0])
        pixels.publish(work / "pixels", _stored_pixels(units), of_what, paths)
    artifacts.publish(work / "teacher", paths.teacher)
    shutil.rmtree(work)
    world.barrier()
    return {"digest": artifacts.read_manifest(paths.teacher)["digest"], "metrics": measured}


def run_pixels(paths: Paths, settings: CacheTeacherSettings, how: RuntimeSettings) -> None:
    """Store the pixels and nothing else: `dvc pull` brings a cache without them.

    Raises:
        UserError: Input is missing or broken, or the pixels do not fit.
    """
    student = model.load(paths.base)
    parts = shards.read_training_parts(paths.shards)
    if not _pixels_fit(parts, student, settings, paths):
        raise UserError(
            f"cache_teacher.pixels: `{settings.pixels}` stores none here; `auto` does within cache_teacher.max_gb and "
            "half of the free disk, `always` where the disk has room"
        )
    identity = pixels.pixels_identity(student.preprocess, parts[0])
    named = artifacts.digest([identity, [part.digest for part in parts]])
    work = work_folders.work_directory("pixels", named, pixels.pixels_directory(paths))
    known = {}
    for name, units in units_of(parts, work, student, stores_pixels=True).items():
        decoded = decode_ahead([[unit] for unit in units], student.preprocess, settings.chunk_size, how.num_workers)
        label, enabled = f"pixels {name}", how.progress
        for group, chunks in terminal.progress(decoded, label=label, enabled=enabled, total=len(units), unit="shard"):
            path = group[0].pixels_path(group[0].read_entries())
            for _ in runtime.until_stopped(store_pixels([path], group, chunks)):
                pass
            known[path.name] = artifacts.sha256_file(path)
    pixels.publish(work / "pixels", known, identity, paths)
    shutil.rmtree(work)
    num_images = sum(part.num_samples for part in parts)
    log.info("pixels of %d images stored in %s", num_images, pixels.pixels_directory(paths))


def _bytes_needed(
    parts: Sequence[shards.Part], student: Clip, teacher: Clip, settings: CacheTeacherSettings, *, stores_pixels: bool
) -> int:
    """Return the room that features and pixels take; token ids and digests are little beside them."""
    num_images, num_captions = (sum(getattr(part, name) for part in parts) for name in COUNTS)
    num_rows = num_images + num_captions if settings.mode == "cached" else 0
    features = num_rows * teacher.embed_dim * getattr(torch, settings.dtype).itemsize
    if isinstance(student, JoinedClip):
        width = student.language_facts["width"]
        features += num_captions * width * getattr(torch, settings.language_dtype).itemsize
    return features + num_images * 3 * math.prod(student.image_size) * stores_pixels


def _pixels_fit(parts: Sequence[shards.Part], student: Clip, settings: CacheTeacherSettings, paths: Paths) -> bool:
    return pixels.fits(settings, sum(part.num_samples for part in parts), student.image_size, paths.shards)


# --- units ------------------------------------------------------------------------------------------------------


def units_of(parts: Sequence[shards.Part], work: Path, student: Clip, *, stores_pixels: bool) -> Units:
    """List the units of each part, to be made in the folder `work`."""
    return {
        part.name: [Unit(part, index, work, student.preprocess, stores_pixels) for index in range(len(part.shards))]
        for part in parts
    }


def fill(
    units: Units,
    student: Clip,
    teacher: Clip,
    settings: CacheTeacherSettings,
    how: RuntimeSettings,
    world: World,
) -> TextCuts:
    """Make this process's share of the units that an earlier run has not finished; wait for the other processes.

    Returns:
        Where token ids were cut.

    Raises:
        UserError: The teacher's features, or a language model's, mean nothing.
        Stopped: A signal asked for it; the group that was begun is finished.
    """
    num_images = PASSES * settings.chunk_size
    own = {name: group_units(some, num_images)[world.rank :: world.size] for name, some in units.items()}
    progress = how.progress and world.is_main
    for name, groups in own.items():
        some = [unit for group in groups for unit in group]
        for unit in terminal.progress(some, label=f"tokenize {name}", unit="shard", enabled=progress):
            tokenize(unit, student, teacher)
    world.barrier()
    cuts = choose_cuts((unit for some in units.values() for unit in some), student, teacher, settings.text_cut)
    with runtime.arithmetic(settings.precision, teacher.device):
        for name, groups in own.items():
            todo = _unfinished(name, groups)
            total = sum(map(count_images, todo))
            decoded = decode_ahead(todo, teacher.preprocess, settings.chunk_size, how.num_workers)
            with terminal.progress(None, label=f"cache {name}", total=total, unit="img", enabled=progress) as bar:
                for group, chunks in decoded:
                    write_group(group, chunks, student, teacher, cuts, settings)
                    bar.update(count_images(group))
                    runtime.stop_if_asked()
    world.barrier()
    return cuts


def _unfinished(part_name: str, groups: Sequence[Group]) -> list[Group]:
    todo = [group for group in groups if not all(unit.is_finished() for unit in group)]
    if len(todo) < len(groups):
        total, left = (sum(map(len, some)) for some in (groups, todo))
        log.info("%s: resumed, %d of %d shards were finished", part_name, total - left, total)
    return todo


def _stored_pixels(units: Units) -> dict[str, str]:
    """Return the SHA-256 of every file of pixels by its name."""
    records = [unit.read_record() for some in units.values() for unit in some]
    return {name: sha256 for record in records for name, sha256 in record["pixels"].items()}


# --- the whole cache --------------------------------------------------------------------------------------------


def _facts(
    parts: Sequence[shards.Part], units: Units, cuts: TextCuts, settings: CacheTeacherSettings
) -> dict[str, Any]:
    """Return what the manifest says of the finished units: where ids are cut, counts, images that do not decode.

    Raises:
        UserError: Too many images do not decode.
    """
    facts: dict[str, Any] = {"text_length": cuts.student, "teacher_text_length": cuts.teacher, "parts": {}}
    for part in parts:
        records = [unit.read_record() for unit in units[part.name]]
        invalid = [reason for record in records for reason in record["invalid"]]
        check.check_share(part, invalid, settings.max_bad_share)
        facts["parts"][part.name] = {
            "num_samples": part.num_samples,
            "num_captions": part.num_captions,
            "num_invalid": len(invalid),
            "invalid": invalid,
            **({"truncated": truncated} if (truncated := count_truncated(units[part.name])) else {}),
            "units": [{key: value for key, value in record.items() if key != "pixels"} for record in records],
        }
    return facts


def _verify(part: CachedPart, student: Clip, teacher: Clip, settings: CacheTeacherSettings) -> dict[str, float]:
    difference = {}
    if settings.mode == "cached":
        difference = check.verify(part, teacher, settings)
        log.info(
            "%d rows computed again: relative difference of features up to %.1e, of the loss %.1e, its gradient %.1e",
            *(difference[name] for name in ("rows", "features", "loss", "gradient")),
        )
    if isinstance(student, JoinedClip):
        difference |= check.verify_language(part, student, settings)
    return {f"verify_{name}": value for name, value in difference.items()}


def _complete(
    work: Path, parts: Sequence[shards.Part], facts: dict[str, Any], identity: dict[str, Any], teacher: Clip
) -> dict[str, float]:
    """Write the statistics and the manifest beside the finished units in `work`; return figures for the tracker."""
    known = {
        f"{name}/{index:05d}.safetensors": unit["sha256"]
        for name, part in facts["parts"].items()
        for index, unit in enumerate(part["units"])
    }
    measured = {}
    scale = float(teacher.logit_scale.detach())
    if identity["mode"] == "cached":
        units = sorted((work / "teacher" / parts[0].name).glob("*.safetensors"))
        check.check_spread(map(safetensors.torch.load_file, units), parts[0].name)
        stats = feature_statistics(map(safetensors.torch.load_file, units))
        write_statistics(work / "teacher", stats)
        measured = {name: float(stats[name]) for name in ("image_norm", "text_norm")}
        log.info("raw norms: image %.2f, text %.2f; logit scale %.1f", *measured.values(), scale)
        problem = raw_norms_problem(measured["image_norm"], measured["text_norm"], scale)
        if problem:
            log.warning("teacher: %s", problem)
    facts |= {"fingerprint": identity, "teacher_logit_scale": scale}
    artifacts.write_manifest(work / "teacher", "cache_teacher", known=known, **facts)
    for part in facts["parts"].values():
        measured["num_invalid"] = measured.get("num_invalid", 0.0) + part["num_invalid"]
    return {**measured, "text_length": float(facts["text_length"])}
