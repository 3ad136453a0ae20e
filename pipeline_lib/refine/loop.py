"""The one training loop: steps, checkpoints, resumption, the loss on pairs that it does not train on.

The student stays in eval mode with gradients on: with dropout on, step 0 would not equal the teacher. What a step sees
is a pure function of (seed, epoch, key) (`sampling`, `epochs`), so a run that was killed and resumed from a checkpoint
ends with the weights of one that was not. Losses are not defined here (`recipes`), gradients neither (`gradients`).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from pipeline_lib import terminal, tracking
from pipeline_lib.cache_teacher.reader import CachedPart, cut_length
from pipeline_lib.cache_teacher.teacher import Teacher
from pipeline_lib.core import artifacts, provenance, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.model import Clip
from pipeline_lib.model.features import Features, Inputs, raw_norms_problem
from pipeline_lib.refine import recipes
from pipeline_lib.refine.epochs import Plan, StepData, read_steps
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.optimiser import clamp_logit_scale, learning_rate, make_optimizer, select_trainable
from pipeline_lib.refine.sampling import Draws
from pipeline_lib.refine.settings import RefineSettings

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


@dataclass
class Refiner:
    """One refinement run. `work` holds checkpoint and history until the stage succeeds."""

    student: Clip
    recipe: recipes.Recipe
    part: CachedPart
    settings: RefineSettings
    runtime: RuntimeSettings
    work: Path
    teacher: Teacher
    val: CachedPart | None = None
    world: World = field(default_factory=World)
    run: tracking.Run = field(default_factory=tracking.Run)

    def __post_init__(self) -> None:
        """Select what is trained; build plan and optimiser."""
        settings = self.settings
        self.plan = Plan(
            rows=self.part.valid_rows,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            keep_last=settings.last_batch == "keep",
            seed=settings.seed,
            max_steps=settings.max_steps,
        )
        if self.plan.num_steps == 0:
            raise UserError(
                f"refine.batch_size: {settings.batch_size} is more than the {len(self.part.valid_rows)} training "
                "samples; lower it, or set refine.last_batch to keep"
            )
        if self.plan.smallest_batch < self.world.size:
            raise UserError(
                f"refine.batch_size: {settings.batch_size} makes a batch of {self.plan.smallest_batch} pairs, too few "
                f"for {self.world.size} processes; change it, take fewer processes, or set refine.last_batch to drop"
            )
        select_trainable(self.student, settings)
        self.optimizer = make_optimizer(self.student, settings)
        self.encoders = Encoders(student=self.student, precision=settings.precision, compile=settings.compile)
        self.initial_logit_scale = float(self.student.module.logit_scale.detach())
        self.initial = {name: p.detach().to("cpu", copy=True) for name, p in self._trainable()}
        self.step = 0
        self.waited = self.elapsed = 0.0

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.student.module.named_parameters() if p.requires_grad]

    # running

    def refine(self) -> dict[str, float]:
        """Run all steps from the checkpoint, if there is one; return figures about the run (times included)."""
        resumed_at = self._resume()
        if self.world.is_main:
            log.info(
                "%d steps of %d pairs, %d samples dropped per epoch",
                self.plan.num_steps,
                self.settings.batch_size,
                self.plan.num_dropped,
            )
        started = time.perf_counter()
        bar = terminal.progress(
            None,
            label="refine",
            total=self.plan.num_steps,
            initial=self.step,
            unit="step",
            enabled=self.runtime.progress and self.world.is_main,
        )
        with bar, (self.work / artifacts.HISTORY).open("a", encoding="utf-8") as history:
            for data in self._steps():
                row = self._one_step(data)
                if self.world.is_main:
                    history.write(json.dumps(row) + "\n")
                self.run.log_metrics(
                    {f"refine/{k}": v for k, v in row.items() if k not in ("step", "epoch")}, row["step"]
                )
                bar.update()
                self.elapsed = time.perf_counter() - started
                bar.set_postfix(loss=f"{row['loss']:.4f}", waiting=f"{self.waited / self.elapsed:.1%}", refresh=False)
                self._maybe_checkpoint(history)
        self._check_weights()
        rate = (self.step - resumed_at) * self.settings.batch_size / max(self.elapsed, 1e-9)
        waiting = self.waited / max(self.elapsed, 1e-9)
        if self.world.is_main:
            log.info("%.0f s, %.1f pairs/s, %.1f %% of it waiting for data", self.elapsed, rate, 100 * waiting)
        return {
            "num_steps": float(self.step),
            "num_dropped_per_epoch": float(self.plan.num_dropped),
            "resumed_at": float(resumed_at),
            "seconds": self.elapsed,
            "pairs_per_second": rate,
            "waiting_share": waiting,
            "weight_displacement": self.displacement(),
        }

    def _steps(self) -> Iterator[StepData]:
        """The remaining steps of the run, read ahead by workers where reading is work; counts the time waited."""
        cuda = self.student.device.type == "cuda"
        workers = self.runtime.num_workers if cuda or not self.part.pixels else 0
        while self.step < self.plan.num_steps:
            before = time.perf_counter()
            for data in read_steps(
                self.part, self.plan, step=self.step, world=self.world, num_workers=workers, pin_memory=cuda
            ):
                self.waited += time.perf_counter() - before
                yield data
                before = time.perf_counter()

    def _one_step(self, data: StepData) -> dict[str, Any]:
        draws = self._draws(self.part, data.rows, self.step)
        rate = learning_rate(self.settings, self.step, self.plan.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.settings.stochastic_layers:
            torch.manual_seed((self.settings.seed * 1_000_003 + self.step) * 1_009 + self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        teacher = self._teacher(data, self.world)
        terms = backward(
            self.encoders,
            recipes.with_raw_norms(self.recipe) if self.step == 0 else self.recipe,
            self._cut(data.inputs),
            teacher,
            draws,
            micro_batch=self.settings.micro_batch,
            world=self.world,
        )
        values = {name: float(term) for name, term in terms.items()}
        loss = math.fsum(value for name, value in values.items() if name.endswith("_loss"))
        if not math.isfinite(loss):
            self._refuse_non_finite(values, data.rows)
        if self.step == 0 and self.world.is_main:
            self._warn_of_norms(values, float(teacher.logit_scale))
        row = {
            "step": self.step,
            "epoch": self.step // self.plan.steps_per_epoch,
            "loss": loss,
            **values,
            "learning_rate": rate,
        }
        if self.settings.grad_clip is not None:
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in self._trainable()], self.settings.grad_clip)
            row["gradient_norm"] = float(norm)
        self.optimizer.step()
        clamp_logit_scale(self.student, self.initial_logit_scale)
        self.step += 1
        if self.step == self.plan.num_steps:
            row["weight_displacement"] = self.displacement()
        return row

    def _cut(self, inputs: Inputs) -> Inputs:
        """The inputs with token ids cut at this batch's longest caption, if so configured."""
        if self.settings.text_cut == "set" or self.student.text_cut_refusal:
            return inputs
        length = cut_length(self.student.text_lengths(inputs.token_ids), inputs.token_ids.shape[1])
        return inputs._replace(token_ids=inputs.token_ids[:, :length])

    def _draws(self, part: CachedPart, rows: np.ndarray, step: int) -> Draws:
        return Draws(
            seed=self.settings.seed,
            epoch=step // self.plan.steps_per_epoch,
            step=step,
            progress=step / self.plan.num_steps,
            key_digests=[part.key_digests[row].tobytes() for row in rows],
            teacher_mean=self.teacher.mean,
            teacher_std=self.teacher.std,
        )

    def _teacher(self, data: StepData, world: World) -> Features:
        like = self.student.module.logit_scale
        return self.teacher.features(data.inputs, data.teacher_features, len(data.rows), world, like)

    def _warn_of_norms(self, values: Mapping[str, float], teacher_logit_scale: float) -> None:
        """Say so where the recipe's raw dot products are far from the logits that the models were trained with."""
        if not recipes.uses_raw_logits(self.recipe):
            return
        scales = {"": float(self.student.logit_scale.detach()), "teacher_": teacher_logit_scale}
        found = (
            raw_norms_problem(values[f"{who}raw_image_norm"], values[f"{who}raw_text_norm"], scale)
            for who, scale in scales.items()
        )
        for problem in dict.fromkeys(filter(None, found)):  # one for both where the base teaches
            log.warning("recipes.%s: %s", self.settings.recipe, problem)

    def _refuse_non_finite(self, values: Mapping[str, float], rows: np.ndarray) -> None:
        keys = ", ".join(self.part.entry(row)[1].key for row in rows[:8])
        terms = ", ".join(f"{name} {value}" for name, value in values.items())
        raise UserError(
            f"refine: the loss is not finite at step {self.step} ({terms}; batch: {keys}, …); "
            "lower refine.learning_rate, or check these samples"
        )

    def _check_weights(self) -> None:
        broken = [name for name, parameter in self._trainable() if not parameter.isfinite().all()]
        if broken:
            raise UserError(
                f"refine: the weights are not finite after the last step ({len(broken)} tensors, first {broken[0]}); "
                "lower refine.learning_rate"
            )

    def displacement(self) -> float:
        """‖w − w₀‖ / ‖w₀‖ over the trained weights."""
        moved = norm = 0.0
        for name, parameter in self._trainable():
            start = self.initial[name].double()
            moved += float((parameter.detach().cpu().double() - start).square().sum())
            norm += float(start.square().sum())
        return math.sqrt(moved / max(norm, 1e-30))

    # the loss on pairs that it does not train on

    def val_loss(self, moment: str) -> dict[str, float]:
        """`val_loss_<moment>`, the recipe's loss on part `val` with the student as it is; empty without such a part.

        The mean over consecutive batches, first captions, one fixed draw, no dropout: two moments of a run compare. The
        run is left as it was: no global random state is used, and plain towers run even where compiled ones train.
        Processes share the batches.
        """
        if self.val is None or not len(self.val.valid_rows):
            return {}
        rows = self.val.valid_rows
        size = min(self.settings.batch_size, len(rows))
        batches = rows[: len(rows) // size * size].reshape(-1, size)
        modes = {layer: layer.training for layer in self.student.module.modules()}
        self.student.module.eval()
        with torch.no_grad():
            own = [self._batch_loss(self.val, batch) for batch in batches[self.world.own_rows(len(batches))]]
        for layer, mode in modes.items():
            layer.training = mode
        losses = self.world.gather_rows(torch.tensor(own, device=self.student.device), len(batches))
        loss = float(torch.cat(losses).mean())
        if self.world.is_main:
            log.info("%s: %s on %d batches of part val: %.6g", moment, self.settings.recipe, len(batches), loss)
        return {f"val_loss_{moment}": loss}

    def _batch_loss(self, part: CachedPart, rows: np.ndarray) -> float:
        encoders = Encoders(student=self.student, precision=self.settings.precision)
        captions = [0] * len(rows)
        data = StepData(rows, part.read_inputs(rows, captions), part.read_features(rows, captions))
        chunks = [x.split(self.settings.micro_batch or len(rows)) for x in self._cut(data.inputs)]
        embedded = [encoders(Inputs(*chunk)) for chunk in zip(*chunks, strict=True)]
        image, text = (torch.cat(features) for features in zip(*embedded, strict=True))
        student, teacher = Features(image, text, self.student.logit_scale), self._teacher(data, World())
        return float(recipes.total_loss(self.recipe(student, teacher, self._draws(part, rows, 0))))

    # checkpoints

    def _conditions(self) -> dict[str, Any]:
        """Under which a resumed run equals an uninterrupted one bitwise."""
        return {
            "device": _machine(self.student.device),
            "num_threads": torch.get_num_threads(),
            "num_processes": self.world.size,
            "micro_batch": self.settings.micro_batch,
            "deterministic": self.runtime.deterministic,
            "packages": provenance.package_versions(),
        }

    def _maybe_checkpoint(self, history: IO[str]) -> None:
        stop = self.world.any(runtime.stop_requested())
        due = self.step % self.runtime.checkpoint_every == 0 and self.step < self.plan.num_steps
        if not (stop or due):
            return
        history.flush()
        os.fsync(history.fileno())
        self.save_checkpoint()
        self.world.barrier()
        if stop:
            log.warning("checkpoint written at step %d of %d; run again to go on", self.step, self.plan.num_steps)
            raise runtime.Stopped
        self.run.check()

    def save_checkpoint(self) -> None:
        """Make what was logged durable, then write the state from which a run goes on."""
        self.run.flush()
        if self.world.is_main:
            state = {
                "step": self.step,
                "model": self.student.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "conditions": self._conditions(),
                "run_id": self.run.run_id,
            }
            with artifacts.atomic_open(self.work / CHECKPOINT) as file:
                torch.save(state, file)

    def _resume(self) -> int:
        """Load the checkpoint of `work`, cut the history back to it; returns the step at which the run goes on."""
        path = self.work / CHECKPOINT
        if not path.is_file():
            if self.world.is_main:
                (self.work / artifacts.HISTORY).unlink(missing_ok=True)
            self.world.barrier()
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.student.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.run.resume(state["run_id"])
        for line in differing(state["conditions"], self._conditions()):
            log.warning("resumed under other conditions, so not bitwise the uninterrupted run: %s", line)
        if self.world.is_main:
            with (self.work / artifacts.HISTORY).open(encoding="utf-8") as history:
                kept = "".join(itertools.islice(history, self.step))
            artifacts.write_text(self.work / artifacts.HISTORY, kept)
        self.world.barrier()
        log.info("resumed at step %d", self.step)
        return self.step


def _machine(device: torch.device) -> str:
    """What computes, as far as its rounding may differ from that of another."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"


def differing(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Conditions that changed between two runs, one line each."""
    return [f"{key}: {recorded.get(key)} then, {now[key]} now" for key in now if recorded.get(key) != now[key]]
