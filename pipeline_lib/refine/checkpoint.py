"""The checkpoint of a run and the history beside it, written and read; when a resumed run is bitwise the whole one."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, provenance
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.refine.state import Setup, State

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The one checkpoint of a run, the newest, in the folder `work` that also holds its history."""

    work: Path
    setup: Setup
    runtime: RuntimeSettings
    run: tracking.Run

    @property
    def history(self) -> Path:
        """One JSON row per step."""
        return self.work / artifacts.HISTORY

    def save(self, state: State) -> None:
        """Make durable what was logged, then write the state from which a run goes on."""
        self.run.flush()
        if self.setup.world.is_main:
            content = {
                "step": state.step,
                "model": state.student.module.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "conditions": self._conditions(state),
                "run_id": self.run.run_id,
            }
            with artifacts.atomic_open(self.work / CHECKPOINT) as file:
                torch.save(content, file)

    def resume(self, state: State) -> None:
        """Load the checkpoint into `state`, if there is one, and cut the history back to its step.

        Conditions under which the run is not bitwise the uninterrupted one are warned of.
        """
        path = self.work / CHECKPOINT
        if path.is_file():
            content = torch.load(path, map_location="cpu", weights_only=True)
            state.student.module.load_state_dict(content["model"])
            state.optimizer.load_state_dict(content["optimizer"])
            state.step = content["step"]
            self.run.resume(content["run_id"])
            for line in list_differences(content["conditions"], self._conditions(state)):
                log.warning("resumed under other conditions, so not bitwise the uninterrupted run: %s", line)
            log.info("resumed at step %d", state.step)
        if self.setup.world.is_main:
            self._cut_history(state.step)
        self.setup.world.barrier()

    def _cut_history(self, step: int) -> None:
        """Drop the rows of steps that a killed run wrote and will take again."""
        if not step:
            self.history.unlink(missing_ok=True)
            return
        with self.history.open(encoding="utf-8") as history:
            kept = "".join(itertools.islice(history, step))
        artifacts.write_text(self.history, kept)

    def _conditions(self, state: State) -> dict[str, Any]:
        """Return the conditions under which a resumed run equals an uninterrupted one bitwise."""
        return {
            "device": _machine(state.student.device),
            "num_threads": torch.get_num_threads(),
            "num_processes": self.setup.world.size,
            "micro_batch": self.setup.settings.micro_batch,
            "deterministic": self.runtime.deterministic,
            "packages": provenance.package_versions(),
        }


def _machine(device: torch.device) -> str:
    """Name what computes, as far as its rounding may differ from that of another."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"


def list_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the conditions that changed between two runs, one line each."""
    return [f"{key}: {recorded.get(key)} then, {now[key]} now" for key in now if recorded.get(key) != now[key]]
