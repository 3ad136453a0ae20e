"""Fills the teacher cache: decode, tokenise, embed, unit by unit, resuming at the next shard.

A unit is built from one shard and is either whole or absent: written under a temporary name, renamed, then recorded
with its hashes under `done/`. A killed stage starts again at the first shard whose record or hashes are missing.
Processes of one world take every n-th shard. See `teacher_cache` for the format and why it is exact.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline_lib import model, terminal
from pipeline_lib.cache_teacher import check as cache_check
from pipeline_lib.cache_teacher import pixels as pixel_cache
from pipeline_lib.cache_teacher.reader import (
    CachedPart,
    cut_length,
    digest_rows,
    embed_images,
    embed_texts,
    embed_texts_by_length,
    fingerprint,
    pixels_identity,
    pixels_name,
)
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, provenance, runtime, shards
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import Clip
from pipeline_lib.model.features import raw_norms_problem

log = logging.getLogger(__name__)
COUNTS = ("num_samples", "num_captions")
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass
class Writer:
    """Builds the cache of all parts in a work folder, unit by unit, resuming at the next unfinished shard."""

    student: Clip
    teacher: Clip
    settings: CacheTeacherSettings
    work: Path
    world: World
    num_workers: int = 0
    progress: bool = True
    pixels: bool = True

    def write(self, parts: Sequence[shards.Part]) -> dict[str, Any]:
        """Write every part's units; return the facts for the manifest (cut length, counts, quarantine)."""
        self.cuts = self._tokenize_all(parts)
        with runtime.arithmetic(self.settings.precision, self.teacher.device):
            for part in parts:
                self._write_part(part)
        self.world.barrier()
        facts: dict[str, Any] = {
            "text_length": self.cuts["student"],
            "teacher_text_length": self.cuts["teacher"],
            "parts": {},
        }
        for part in parts:
            records = [self._record(part, index) for index in range(len(part.shards))]
            units = [{key: value for key, value in record.items() if key != "pixels"} for record in records]
            invalid = [reason for unit in units for reason in unit["invalid"]]
            facts["parts"][part.name] = {
                "num_samples": part.num_samples,
                "num_captions": part.num_captions,
                "num_invalid": len(invalid),
                "invalid": invalid,
                "units": units,
            }
            self._check_share(part, invalid)
        return facts

    def _check_share(self, part: shards.Part, invalid: list[str]) -> None:
        share = len(invalid) / max(1, part.num_samples)
        if share > self.settings.max_bad_share:
            raise UserError(
                f"{part.directory}: {len(invalid)} of {part.num_samples} images cannot be decoded "
                f"({'; '.join(invalid[:3])}); mend them, or raise cache_teacher.max_bad_share"
            )

    # text

    def _tokenize_all(self, parts: Sequence[shards.Part]) -> dict[str, int]:
        """Token ids of every caption, uncut, kept in the work folder; returns the length to which each model's are cut.

        One longest caption decides for both, so that a student and a teacher with one tokenizer see the same ids.
        """
        for part in parts:
            own = range(self.world.rank, len(part.shards), self.world.size)
            enabled = self.progress and self.world.is_main
            for index in terminal.progress(own, label=f"tokenize {part.name}", unit="shard", enabled=enabled):
                if not self._tokens_path(part, index).is_file():
                    self._tokenize(part, index)
        self.world.barrier()
        lengths = torch.cat([self._tokens(part, i)["lengths"] for part in parts for i in range(len(part.shards))])
        cuts = {}
        for name, clip in (("student", self.student), ("teacher", self.teacher)):
            if self.settings.text_cut != "none" and clip.text_cut_refusal:
                log.info("the %s's text is not cut: %s", name, clip.text_cut_refusal)
            whole = self.settings.text_cut == "none" or clip.text_cut_refusal
            cuts[name] = clip.context_length if whole else cut_length(lengths, clip.context_length)
        return cuts

    def _tokenize(self, part: shards.Part, index: int) -> None:
        captions = [text for entry in shards.read_index(part.shards[index].index_path) for text in entry.captions]
        unit = {"student": self.student.tokenize(captions)}
        lengths = self.student.text_lengths(unit["student"])
        if self.teacher is not self.student:
            unit["teacher"] = self.teacher.tokenize(captions)
            lengths = lengths.maximum(self.teacher.text_lengths(unit["teacher"]))
        unit["lengths"] = lengths
        artifacts.write_bytes(self._tokens_path(part, index), safetensors.torch.save(unit))

    def _tokens_path(self, part: shards.Part, index: int) -> Path:
        return self.work / "tokens" / part.name / f"{index:05d}.safetensors"

    def _tokens(self, part: shards.Part, index: int) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self._tokens_path(part, index))

    def _token_ids(self, tokens: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """Cut ids of the `student` or the `teacher`; where both are one model, they are kept once."""
        return tokens.get(name, tokens["student"])[:, : self.cuts[name]]

    # units

    def _unit_path(self, part: shards.Part, index: int) -> Path:
        return self.work / "teacher" / part.name / f"{index:05d}.safetensors"

    def _record(self, part: shards.Part, index: int) -> dict[str, Any]:
        return artifacts.read_json(self.work / "done" / part.name / f"{index:05d}.json")

    def _finished(self, part: shards.Part, index: int) -> bool:
        """Whether a unit of an earlier, interrupted run is whole: its files have the recorded hashes."""
        if not (self.work / "done" / part.name / f"{index:05d}.json").is_file():
            return False
        record = self._record(part, index)
        if self.pixels and not record["pixels"]:
            return False
        files = {self._unit_path(part, index): record["sha256"]}
        if self.pixels:
            files |= {self.work / "pixels" / name: sha256 for name, sha256 in record["pixels"].items()}
        return all(path.is_file() and artifacts.sha256_file(path) == sha for path, sha in files.items())

    def stored_pixels(self, parts: Sequence[shards.Part]) -> dict[str, str]:
        """SHA-256 of every file of pixels by its name."""
        records = [self._record(part, index) for part in parts for index in range(len(part.shards))]
        return {name: sha256 for record in records for name, sha256 in record["pixels"].items()}

    def _write_part(self, part: shards.Part) -> None:
        own = range(self.world.rank, len(part.shards), self.world.size)
        todo = [index for index in own if not self._finished(part, index)]
        if len(todo) < len(own):
            log.info("%s: resumed, %d of %d shards were finished", part.name, len(own) - len(todo), len(own))
        chunk = self.settings.chunk_size
        chunks = iter(pixel_cache.decoded(part, todo, self.student, self.teacher, chunk, self.num_workers))
        enabled = self.progress and self.world.is_main
        total = sum(part.shards[index].num_samples for index in todo)
        with terminal.progress(None, label=f"cache {part.name}", total=total, unit="img", enabled=enabled) as bar:
            for index in todo:
                self._write_unit(part, index, chunks)
                bar.update(part.shards[index].num_samples)
                if runtime.stop_requested():
                    raise runtime.Stopped

    def _write_unit(self, part: shards.Part, index: int, chunks: Iterator[Any]) -> None:
        shard = part.shards[index]
        entries = list(shards.read_index(shard.index_path))
        features, invalid = [], {}
        path = self.work / "pixels" / pixels_name(pixels_identity(self.student.preprocess, part), entries)
        size = self.student.image_size
        with pixel_cache.new_file(path, len(entries), size) if self.pixels else nullcontext() as pixels:
            for start in range(0, len(entries), self.settings.chunk_size):
                places, images, reasons = next(chunks)
                if places[0] != (index, start):
                    raise AssertionError(f"expected the chunk at {(index, start)}, got {places[0]}")
                if pixels is not None:
                    pixels[start : start + len(places)] = images[0].numpy()
                invalid.update(reasons)
                if self.settings.mode == "cached":
                    features.append(embed_images(self.teacher, images[-1], self.settings.chunk_size))
        tokens = self._tokens(part, index)
        unit = self._texts(entries, self._token_ids(tokens, "student"))
        unit["valid"] = torch.tensor([row not in invalid for row in range(len(entries))], dtype=torch.uint8)
        if self.settings.mode == "cached":
            unit["image_features"] = torch.cat(features)
            embed = embed_texts_by_length if self.settings.text_cut == "chunk" else embed_texts
            unit["text_features"] = embed(self.teacher, self._token_ids(tokens, "teacher"), self.settings.chunk_size)
            cache_check.check_unit(unit, f"{part.name}/{index:05d}")
            for name in ("image_features", "text_features"):
                unit[name] = unit[name].to(STORED_DTYPES[self.settings.dtype])
        data = safetensors.torch.save(unit)
        artifacts.write_bytes(self._unit_path(part, index), data)
        record = {
            "shard": shard.sha256,
            "sha256": artifacts.sha256_bytes(data),
            "num_samples": len(entries),
            "num_captions": len(tokens["student"]),
            "invalid": [invalid[row] for row in sorted(invalid)],
            "pixels": {path.name: artifacts.sha256_file(path)} if self.pixels else {},
        }
        artifacts.write_json(self.work / "done" / part.name / f"{index:05d}.json", record)

    def _texts(self, entries: Sequence[Any], token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        captions = [caption for entry in entries for caption in entry.captions]
        counts = [0, *(len(entry.captions) for entry in entries)]
        return {
            "caption_offsets": torch.tensor(counts).cumsum(0),
            "token_ids": token_ids.to(torch.int32),
            "key_digests": digest_rows([shards.text_digest(entry.key) for entry in entries]),
            "caption_digests": digest_rows([shards.text_digest(caption) for caption in captions]),
        }


def feature_statistics(units: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean and deviation [D] of the teacher's raw features over both modalities, and the mean norm of each modality."""
    rows = 0
    total = squares = torch.zeros(1, dtype=torch.float64)
    norms: dict[str, list[torch.Tensor]] = {"image_norm": [], "text_norm": []}
    for unit in units:
        pair = unit["image_features"][unit["valid"].bool()].double(), unit["text_features"].double()
        for name, features in zip(norms, pair, strict=True):
            rows += len(features)
            total = total + features.sum(0)
            squares = squares + features.square().sum(0)
            norms[name].append(features.norm(dim=-1))
    mean = total / max(1, rows)
    deviation = (squares / max(1, rows) - mean.square()).clamp_min(0).sqrt()
    means = {name: torch.cat(values).mean().float() for name, values in norms.items() if values}
    return {"mean": mean.float(), "std": deviation.float(), **means}


# --- the stage --------------------------------------------------------------------------------------------------


def run(
    paths: Paths, settings: CacheTeacherSettings, how: RuntimeSettings, world: World, code_digest: str
) -> dict[str, Any]:
    """Fill `paths.teacher` from `paths.base` and `paths.shards`, verify a sample, publish; store pixels beside it.

    Returns:
        `digest` of the cache's manifest and `metrics` for the tracker (None on processes other than the first).

    Raises:
        UserError: Input is missing or broken, too many images do not decode, or the verification fails.
    """
    device = runtime.pick_device(how.device)
    student = model.load(paths.base, device=device)
    teacher = student if settings.teacher == "base" else model.load(Path(settings.teacher), device=device)
    parts = shards.read_training_parts(paths.shards)
    shards_digest = artifacts.read_manifest(paths.shards, stage="shard")["digest"]
    identity = fingerprint(student, teacher, settings, shards_digest)
    num_images = sum(part.num_samples for part in parts)
    pixels = not world.any(not pixel_cache.fits(settings, num_images, student.image_size, paths.shards))
    made_by = [code_digest, provenance.package_versions(), device.type, torch.get_num_threads()]
    work = artifacts.work_directory("cache_teacher", world.first_of(artifacts.digest([identity, made_by])))
    writer = Writer(student, teacher, settings, work, world, how.num_workers, how.progress, pixels)
    started = time.perf_counter()
    facts = writer.write(parts)
    seconds = time.perf_counter() - started
    if not world.is_main:
        world.barrier()
        return {}
    measured = _finish(work, parts, facts, identity, teacher) | {"seconds": seconds}
    log.info(
        "%d images and %d captions in %.0f s",
        *(sum(part[k] for part in facts["parts"].values()) for k in COUNTS),
        seconds,
    )
    if settings.mode == "cached":
        measured |= _verify(CachedPart(work / "teacher", None, parts[0], student), teacher, settings)
    if pixels:
        pixel_cache.publish(
            work / "pixels", writer.stored_pixels(parts), pixels_identity(student.preprocess, parts[0]), paths
        )
    artifacts.publish(work / "teacher", paths.teacher)
    shutil.rmtree(work)
    world.barrier()
    return {"digest": artifacts.read_manifest(paths.teacher)["digest"], "metrics": measured}


def _verify(part: CachedPart, teacher: Clip, settings: CacheTeacherSettings) -> dict[str, float]:
    difference = cache_check.verify(part, teacher, settings)
    log.info(
        "%d rows computed again: relative difference of features up to %.1e, of the loss %.1e, its gradient %.1e",
        *(difference[name] for name in ("rows", "features", "loss", "gradient")),
    )
    return {f"verify_{name}": value for name, value in difference.items()}


def _finish(
    work: Path, parts: Sequence[shards.Part], facts: dict[str, Any], identity: dict[str, Any], teacher: Clip
) -> dict[str, float]:
    """Statistics and manifests of the finished units in `work`; returns figures for the tracker."""
    known = {
        f"{name}/{index:05d}.safetensors": unit["sha256"]
        for name, part in facts["parts"].items()
        for index, unit in enumerate(part["units"])
    }
    measured = {}
    scale = float(teacher.logit_scale.detach())
    if identity["mode"] == "cached":
        units = sorted((work / "teacher" / parts[0].name).glob("*.safetensors"))
        cache_check.check_spread(map(safetensors.torch.load_file, units), parts[0].name)
        stats = feature_statistics(map(safetensors.torch.load_file, units))
        artifacts.write_bytes(work / "teacher" / "statistics.safetensors", safetensors.torch.save(stats))
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
