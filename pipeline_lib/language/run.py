"""From `language.source` to data/language: read, perhaps tuned, written, loaded back and compared."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import model, tracking
from pipeline_lib.core import artifacts, provenance, runtime, shards, work_folders
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import LANGUAGE, Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.language.pairs import measure_caption_retrieval, read_captions, read_pairs
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.language.sources import read_source
from pipeline_lib.language.tuning import CHECKPOINT, Tuning
from pipeline_lib.model.features import row_difference
from pipeline_lib.model.language import LanguageModel, Reading, load_language, save_language
from pipeline_lib.model.licence import copy_licences

log = logging.getLogger(__name__)
TEXTS = ("a photo of a cat", "two red circles on a white ground, and beside them a smaller green one")
PASS_SIZE = 64  # captions that are read at once where retrieval is measured


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the stage is told: where, what, how, and to whom it reports."""

    paths: Paths
    settings: LanguageSettings
    runtime: RuntimeSettings
    run: tracking.Run


def run(job: Job) -> dict[str, Any]:
    """Write the language model that the settings name to `paths.language`, whole or not at all.

    Returns:
        `digest` of the manifest and `metrics` for the tracker.

    Raises:
        UserError: It cannot be had or read, its attention cannot be made what is asked, or there is nothing to tune on.
        Stopped: A signal asked for it while it was tuned; run again, it goes on.
    """
    settings, target = job.settings, job.paths.language
    reading = _reading(settings)
    source = read_source(settings)
    language = LanguageModel(source.module, source.tokenizer, reading, Path(f"language.source: {settings.source}"))
    work = work_folders.work_directory(LANGUAGE, _fingerprint(job, language), target)
    tuned: Mapping[str, float] = {}
    if settings.tune:
        language, tuned = _tune(job, language, work)
    folder = work / LANGUAGE
    save_language(language, folder)
    if source.folder:
        copy_licences(source.folder, folder)
    facts = {**check_written(language, folder), "source": source.origin, "license": source.license}
    parameters = {LANGUAGE: dataclasses.asdict(settings)}
    digest = artifacts.write_manifest(folder, LANGUAGE, language=facts, parameters=parameters, tuning=dict(tuned))
    artifacts.publish(folder, target)
    shutil.rmtree(work)
    read = f"{'causal' if facts['causal'] else 'bidirectional'} attention, {reading.pooling} pooling"
    log.info("%s: %s, %d tokens, features of width %d", settings.source, read, reading.max_length, language.width)
    return {"digest": digest, "metrics": tuned}


def _reading(settings: LanguageSettings) -> Reading:
    if settings.prompt.count("{}") != 1:
        raise UserError(f"language.prompt: {settings.prompt!r} must hold {{}} once, for the text")
    return Reading(settings.attention, settings.pooling, settings.prompt, settings.max_length)


def _fingerprint(job: Job, language: LanguageModel) -> str:
    """Name what a stopped run must have in common with the one that goes on."""
    if not job.settings.tune:
        return artifacts.digest(dataclasses.asdict(job.settings))
    inputs = artifacts.read_manifest(job.paths.shards, stage=shards.STAGE)["digest"]
    read = language.tokenize(TEXTS).tolist()
    origin = [model.weights_digest(language.module.state_dict()), len(language.tokenizer), read]
    if file := job.settings.tune.pairs:
        if not os.path.isfile(file):
            raise UserError(f"language.tune.pairs: {file} is no file; name one of JSON Lines, or write null")
        origin.append(artifacts.sha256_file(Path(file)))
    code = [provenance.stage_digest(LANGUAGE), provenance.package_versions()]
    return artifacts.digest([dataclasses.asdict(job.settings), origin, inputs, code])


def _tune(job: Job, language: LanguageModel, work: Path) -> tuple[LanguageModel, Mapping[str, float]]:
    """Tune on part `refine` or a file of pairs; measure before and after on part `val`, where it has pairs."""
    assert job.settings.tune is not None
    parts = {part.name: part for part in shards.read_training_parts(job.paths.shards)}
    counts: Mapping[str, float] = {}
    if file := job.settings.tune.pairs:
        captions, counts = read_pairs(Path(file), language, _held_out(job.paths.shards))
    else:
        captions = read_captions(parts["refine"], language)
    held_out = read_captions(parts["val"], language) if "val" in parts else None
    held_out = held_out if held_out and len(held_out) else None
    language.module.to(runtime.pick_device(job.runtime.device))
    before = measure_caption_retrieval(held_out, language, PASS_SIZE) if held_out else None
    tuning = Tuning.start(language, captions, job.settings.tune)
    tuning.resume(work / CHECKPOINT)
    tuning.run(work, job.runtime, job.run)
    merged, found = tuning.merge()
    if held_out and before is not None:
        after = measure_caption_retrieval(held_out, merged, PASS_SIZE)
        found |= {"caption_pair_recall_at_1_before": before, "caption_pair_recall_at_1_after": after}
        found["caption_pair_candidates"] = float(len(held_out))
        log.info(
            "captions of val that find another caption of their image first, of %d: %.1f %% before, %.1f %% after",
            *(len(held_out), 100 * before, 100 * after),
        )
    merged.module.cpu()
    return merged, {**found, **counts, "num_images": float(len(captions)), "num_steps": float(tuning.num_steps)}


def _held_out(folder: Path) -> set[str]:
    """Collect the captions of all parts and sets on which nothing is trained."""
    names = artifacts.read_manifest(folder, stage=shards.STAGE)["parts"]
    parts = [shards.read_part(folder / name) for name in names if name not in shards.LEARNED_FROM]
    return {caption for part in parts for entry in part.entries() for caption in entry.captions}


@torch.no_grad()
def check_written(language: LanguageModel, directory: Path) -> dict[str, Any]:
    """Load `directory` back and compare its features with those of `language`, which was saved there; return its facts.

    Raises:
        RuntimeError: They differ, or are not finite: what was written is not what was made.
    """
    written = load_language(directory)
    expected, found = (each.encode(each.tokenize(TEXTS)) for each in (language, written))
    if not (difference := row_difference(found, expected)) <= 1e-6:  # also where it is NaN
        raise RuntimeError(f"{directory}: features of the written model differ by {difference:.2g} (relative)")
    return written.facts()
