"""Tuning a language model on pairs of captions, so that what says the same lies together (stage 1 of LLM2CLIP).

LoRA on every linear layer, one optimiser step a batch of pairs, by the gradients of `refine.gradients`: chunks of a
batch give the gradient of the whole. A stopped run goes on at its checkpoint, with the weights of one that was not. At
the end LoRA is merged in fp32, and the merged model compared with the unmerged one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import losses, terminal, tracking
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.language.pairs import Captions, PairEncoder, equal_rows
from pipeline_lib.language.settings import TuneSettings
from pipeline_lib.model.features import Features, Inputs, row_difference
from pipeline_lib.model.language import INSTALL, LanguageModel
from pipeline_lib.refine.gradients import Encoders, backward
from pipeline_lib.refine.sampling import Draws, epoch_order

log = logging.getLogger(__name__)
CHECKPOINT = "tuning.pt"
MERGED = 1e-3  # relative difference of features up to which the merged model counts as the tuned one: rounding in fp32


@dataclass(frozen=True)
class PairRecipe:
    """The loss of one batch, as `backward` asks for it."""

    equal: torch.Tensor

    def __call__(self, student: Features, teacher: Features, draws: Draws) -> dict[str, torch.Tensor]:
        """Evaluate the loss of queries (in the place of images) and documents (of texts)."""
        logits = student.logit_scale * student.image_features @ student.text_features.T
        return {"caption_pair_loss": losses.caption_pair_loss(logits, self.equal.to(logits.device))}


@dataclass(kw_only=True)
class Tuning:
    """A run: the language model with LoRA in it, what it learns from, and how far it is."""

    language: LanguageModel  # whose module has LoRA's matrices between its own
    lora: Any  # peft's view of the same
    captions: Captions
    settings: TuneSettings
    optimizer: torch.optim.AdamW
    step: int = 0

    @classmethod
    def start(cls, language: LanguageModel, captions: Captions, settings: TuneSettings) -> Tuning:
        """Put LoRA into every linear layer of `language`, which changes no feature yet.

        Raises:
            UserError: peft is not there, or there are too few images for one batch.
        """
        try:
            import peft
        except ImportError as error:
            raise UserError(f"language.tune: peft is not there; {INSTALL}") from error
        if not len(captions):
            of = f"line of {settings.pairs} without a held-out caption" if settings.pairs else "image of part `refine`"
            raise UserError(
                f"language.tune: no {of} has two captions that differ; write null, or take a set with several captions "
                "an image"
            )
        if len(captions) < settings.batch_size:
            raise UserError(
                f"language.tune.batch_size: {settings.batch_size} is more than the {len(captions)} images "
                "(or lines) with two captions; lower it"
            )
        options = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "bias": "none"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            lora = peft.get_peft_model(language.module, peft.LoraConfig(**options, target_modules="all-linear"))
        _switch_dropout(lora, on=False)  # it is born switched on
        trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        return cls(language=language, lora=lora, captions=captions, settings=settings, optimizer=optimizer)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; the images that are left over are others in each."""
        return len(self.captions) // self.settings.batch_size

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.steps_per_epoch * self.settings.epochs

    def take_step(self) -> float:
        """Take one optimiser step and return its loss.

        Raises:
            UserError: The loss is not finite.
        """
        settings, (epoch, place) = self.settings, divmod(self.step, self.steps_per_epoch)
        rows = epoch_order(len(self.captions), seed=settings.seed, epoch=epoch)
        rows = rows[place * settings.batch_size :][: settings.batch_size]
        inputs = Inputs(*self.captions.draw(rows, seed=settings.seed, epoch=epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        _switch_dropout(self.lora, on=True)
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        encoders = Encoders(student=PairEncoder(self.language, settings.scale), precision=settings.precision)
        nothing = Features(torch.empty(0), torch.empty(0), torch.tensor(1.0))
        keys = [self.captions.key_digests[row] for row in rows]
        draws = Draws(seed=settings.seed, epoch=epoch, step=self.step, progress=0.0, key_digests=keys)
        recipe: Any = PairRecipe(equal_rows(*inputs))
        [loss] = backward(encoders, recipe, inputs, nothing, draws, micro_batch=settings.micro_batch).values()
        if not loss.isfinite():
            raise UserError(f"language.tune: the loss is not finite at step {self.step}; lower its learning_rate")
        self.optimizer.step()
        _switch_dropout(self.lora, on=False)
        self.step += 1
        return float(loss)

    def _rate(self) -> float:
        """Return the learning rate of the step to take: up linearly, then down linearly."""
        settings, step = self.settings, self.step
        if step < settings.warmup_steps:
            return settings.learning_rate * (step + 1) / settings.warmup_steps
        return settings.learning_rate * (self.num_steps - step) / max(1, self.num_steps - settings.warmup_steps)

    def save(self, path: Path) -> None:
        """Write what a stopped run goes on from."""
        weights = {name: tensor for name, tensor in self.lora.state_dict().items() if "lora_" in name}
        with artifacts.atomic_open(path) as file:
            torch.save({"step": self.step, "lora": weights, "optimizer": self.optimizer.state_dict()}, file)

    def resume(self, path: Path) -> None:
        """Go on from there, if there is something."""
        if path.is_file():
            content = torch.load(path, map_location="cpu", weights_only=True)
            self.lora.load_state_dict(content["lora"], strict=False)
            self.optimizer.load_state_dict(content["optimizer"])
            self.step = content["step"]
            log.info("resumed at step %d", self.step)

    def run(self, work: Path, how: RuntimeSettings, run: tracking.Run) -> None:
        """Take the steps that remain.

        Raises:
            Stopped: A signal asked for it; there is a checkpoint of the last step.
            UserError: See `take_step`.
        """
        counts = {"total": self.num_steps, "initial": self.step}
        with terminal.progress(None, label="tune", unit="step", enabled=how.progress, **counts) as bar:
            while self.step < self.num_steps:
                loss = self.take_step()
                run.log_metrics({"language/caption_pair_loss": loss}, self.step - 1)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
                stop = runtime.stop_requested()
                if stop or (self.step % how.checkpoint_every == 0 and self.step < self.num_steps):
                    self.save(work / CHECKPOINT)
                if stop:
                    log.warning("checkpoint written at step %d of %d; run again to go on", self.step, self.num_steps)
                    raise runtime.Stopped

    @torch.no_grad()
    def merge(self) -> tuple[LanguageModel, dict[str, float]]:
        """Merge LoRA into the weights; return the model as it will be read, and the relative difference it makes.

        Raises:
            UserError: It is not the tuned model.
        """
        ids = self.captions.token_ids[:16].to(next(self.lora.parameters()).device)
        tuned = self.language.encode(ids)
        module = self.lora.merge_and_unload(safe_merge=True)
        merged = self.language.with_module(module)
        difference = row_difference(merged.encode(ids), tuned)
        if not difference <= MERGED:
            raise UserError(
                f"language.tune: the merged model's features differ from the tuned one's by {difference:.1e} of their "
                f"norm, more than {MERGED:.0e}; lower language.tune.alpha"
            )
        return merged, {"merge_difference": difference}


def _switch_dropout(lora: Any, *, on: bool) -> None:
    """Switch LoRA's own dropout; the model stays as it is when it reads."""
    for name, layer in lora.named_modules():
        if "lora_dropout" in name:
            layer.train(on)
