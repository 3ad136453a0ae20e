"""From base and teacher cache to the refined model: checks, the loss on part `val`, the loop, the published folder.

Step 0 of the student must give the cached features, since both come from the same weights; the saved folder, loaded
back, must give those of the model in memory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import model, tracking
from pipeline_lib.cache_teacher import reader
from pipeline_lib.cache_teacher.fingerprint import fingerprint
from pipeline_lib.cache_teacher.pixels import pixels_directory
from pipeline_lib.cache_teacher.reader import CachedPart
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.cache_teacher.student import load_student, read_language
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core import artifacts, runtime, work_folders
from pipeline_lib.core.distributed import World
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import Clip
from pipeline_lib.model.adapter import Shape
from pipeline_lib.refine import checks, recipes
from pipeline_lib.refine.checkpoint import Checkpoints
from pipeline_lib.refine.epochs import Plan
from pipeline_lib.refine.loop import run_steps
from pipeline_lib.refine.norms import measure_raw_norms
from pipeline_lib.refine.optimiser import named_trainable
from pipeline_lib.refine.publish import publish_refined
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.refine.state import Setup, State
from pipeline_lib.refine.validation import measure_val_loss

log = logging.getLogger(__name__)
DECIDE_TEACHER = (  # keys of `cache_teacher`
    *("mode", "teacher", "precision", "dtype", "language_dtype", "chunk_size", "text_cut"),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that the stage is told: where, what, how, and to whom it reports."""

    paths: Paths
    settings: RefineSettings
    cache: CacheTeacherSettings
    blocks: Mapping[str, Any]  # the section `recipes`, as plain values
    runtime: RuntimeSettings
    world: World
    run: tracking.Run
    code_digest: str  # of the stage; a checkpoint of other code is not resumed


def run(job: Job) -> dict[str, Any]:
    """Refine `paths.base` into `paths.refined`.

    Returns:
        `digest` of the refined model's manifest and `metrics` for the tracker (empty on processes but the first).

    Raises:
        UserError: The cache is not the one for this model, step 0 does not match it, the loss is not finite, or the
            saved model does not give the features of the one in memory.
    """
    student, setup, val, cache_digest = _prepare(job)
    measured = checks.check_base_against_cache(student, setup.part, job.cache, job.settings.step0_tolerance)
    state = State.start(student, job.settings)
    checkpoints = _open_checkpoints(job, setup, student, cache_digest)
    measured |= measure_val_loss("before", student, val, setup, is_teacher=_starts_as_teacher(job))
    checkpoints.resume(state)
    if state.step == 0:
        norms = measure_raw_norms(student, setup)
        job.run.log_metrics({f"refine_run/{name}": value for name, value in norms.items()})
    measured |= run_steps(state, setup, checkpoints, job.runtime, job.run)
    checks.check_weights(student)
    state.optimizer.zero_grad()
    moved = state.displacement(job.paths.base)
    measured |= {} if moved is None else {"weight_displacement": moved}
    measured |= measure_val_loss("after", student, val, setup)
    if moved is not None:
        checks.warn_if_still(moved)
    digest = ""
    if job.world.is_main:
        facts = {"parameters": _made_with(job), "cache": cache_digest, "weight_displacement": moved}
        if "val_loss_after" in measured:
            facts["val_loss"] = {moment: measured[f"val_loss_{moment}"] for moment in ("before", "after")}
        digest = publish_refined(state, setup, checkpoints, job.paths, facts)
        _log_once(job.run, dict(measured))
    job.world.barrier()
    return {"digest": digest, "metrics": measured} if job.world.is_main else {}


def _log_once(run: tracking.Run, values: dict[str, float]) -> None:
    """Log the loss on part `val` as a curve of two points, and what is no curve as `refine_run/<name>`."""
    for step, moment in ((0, "before"), (int(values["num_steps"]), "after")):
        if f"val_loss_{moment}" in values:
            run.log_metrics({"refine/val_loss": values.pop(f"val_loss_{moment}")}, step)
    if "weight_displacement" in values:
        values["weight_displacement_percent"] = 100 * values.pop("weight_displacement")
    run.log_metrics({f"refine_run/{name}": value for name, value in values.items()})


def _prepare(job: Job) -> tuple[Clip, Setup, CachedPart | None, str]:
    """Make the recipe, load the models, open the cache that fits them.

    Returns:
        The student, the setup, part `val` if there is one, the digest of the cache.
    """
    paths, settings = job.paths, job.settings
    recipe = recipes.make_recipe(settings.recipe, job.blocks)
    device = runtime.pick_device(job.runtime.device)
    base, student = _load_student(job, device)
    teacher = base if job.cache.teacher == "base" else model.load(Path(job.cache.teacher), device=device)
    recipes.try_out(recipe, f"recipes.{settings.recipe}", student.embed_dim, teacher.embed_dim)
    manifest = artifacts.read_manifest(paths.teacher, stage="cache_teacher")
    shards_digest = artifacts.read_manifest(paths.shards, stage="shard")["digest"]
    expected = fingerprint(student, teacher, job.cache, shards_digest)
    reader.check_fingerprint(manifest, expected, paths.teacher)
    parts = _open_parts(job, student)
    if _keeps_images(job):
        log.info("the image tower is locked and the teacher's: its features are read from the cache, no pixel is")
        for part in parts.values():
            part.reads_pixels = False
    plan = Plan.of(settings, parts["refine"].valid_rows)
    checks.check_plan(plan, job.world.size)
    setup = Setup(
        recipe=recipe,
        teacher=Teacher.of_cache(paths, job.cache, manifest, student, teacher),
        part=parts["refine"],
        plan=plan,
        settings=settings,
        world=job.world,
    )
    return student, setup, parts.get("val"), manifest["digest"]


def _load_student(job: Job, device: torch.device) -> tuple[Clip, Clip]:
    adapter = job.settings.adapter
    shape = Shape(adapter.depth, adapter.expansion, adapter.dropout) if adapter else None
    if shape and job.paths.has_language:
        width = read_language(job.paths)["language"]["width"]
        embed_dim = model.read_config(job.paths.base)["model_cfg"]["embed_dim"]
        checks.check_adapter_fits(shape, width, embed_dim, device)
    return load_student(job.paths, device, adapter=shape, seed=job.settings.seed, logit_scale=job.settings.logit_scale)


def _has_teacher_images(job: Job) -> bool:
    """Return whether the student's image features before the first step are the cached ones, to rounding."""
    cache = job.cache
    return cache.teacher == "base" and cache.dtype == "float32" and cache.precision == job.settings.precision


def _starts_as_teacher(job: Job) -> bool:
    """Return whether the student's features and scale before the first step are the teacher's, to rounding."""
    return _has_teacher_images(job) and not job.paths.has_language and job.settings.logit_scale is None


def _keeps_images(job: Job) -> bool:
    """Return whether they are the cached ones to the last step: the tower is locked whole, and nothing in it random."""
    settings = job.settings
    locked = settings.lock_image and not settings.lock_image_unlocked_groups and not settings.stochastic_layers
    return locked and _has_teacher_images(job) and job.cache.mode == "cached"


def _open_parts(job: Job, student: Clip) -> dict[str, CachedPart]:
    """Open the cache's parts, and say so where images must be decoded again for want of stored pixels."""
    wanted = job.cache.pixels != "never"
    parts = reader.open_parts(job.paths, student, pixels=wanted)
    if job.world.is_main and wanted and not parts["refine"].pixels:
        log.info(
            "%s has no pixels of these shards: each image is decoded again, which changes no result; "
            "`python -m stages.cache_teacher pixels` stores them",
            pixels_directory(job.paths),
        )
    return parts


def _open_checkpoints(job: Job, setup: Setup, student: Clip, cache_digest: str) -> Checkpoints:
    """Open the folder of this very run: other parameters, inputs or code have another."""
    identity = [cache_digest, student.facts["weights_digest"], dataclasses.asdict(job.settings)]
    run_fingerprint = artifacts.digest([*identity, job.blocks[job.settings.recipe], job.code_digest])
    work = work_folders.work_directory("refine", run_fingerprint, job.paths.refined)
    if job.world.is_main:
        work_folders.check_room(work, _bytes_needed(job, setup, student) - work_folders.bytes_in(work))
    return Checkpoints(work=work, setup=setup, runtime=job.runtime, run=job.run)


def _bytes_needed(job: Job, setup: Setup, student: Clip) -> int:
    """Return the room that the result takes, with checkpoints: the newest stays until the next one is whole."""
    sizes = [parameter.nbytes for parameter in student.module.parameters()]
    trained = [parameter.nbytes for _, parameter in named_trainable(student)]
    checkpoint = sum(sizes) + 2 * sum(trained)
    return 2 * checkpoint if setup.plan.num_steps > job.runtime.checkpoint_every else checkpoint


def _made_with(job: Job) -> dict[str, Any]:
    """Name the parameters that decide the weights, in the places that they have in params.yaml."""
    refine = {key: value for key, value in dataclasses.asdict(job.settings).items() if key != "step0_tolerance"}
    teacher = {key: value for key, value in dataclasses.asdict(job.cache).items() if key in DECIDE_TEACHER}
    recipe = job.settings.recipe
    made_with = {"refine": refine, "cache_teacher": teacher, "recipes": {recipe: job.blocks[recipe]}}
    return made_with | (read_language(job.paths)["parameters"] if job.paths.has_language else {})
