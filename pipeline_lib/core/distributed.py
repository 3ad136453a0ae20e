"""Many processes as one: join what torchrun or srun started, or relaunch a stage through torch.distributed.run.

The parallel arithmetic of this project is simple because the loss is computed whole on every process: features are
gathered (B x D numbers), every process evaluates the same B x B loss and back-propagates only through its own rows, and
the parameter gradients are summed. That is the gradient of one process at the same global batch, with negatives and
soft labels over all processes; no parameter needs a gradient for it to hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.runtime import RuntimeSettings

BUCKET_ELEMENTS = 2**24  # gradients are summed in flat buckets of this many numbers


@dataclass(frozen=True)
class World:
    """This process among all. One process alone is `World()`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and logs."""
        return self.rank == 0

    def share(self, num_rows: int) -> list[int]:
        """Return how many of `num_rows` rows each process takes: the first ones one more where it does not divide."""
        return [num_rows // self.size + (rank < num_rows % self.size) for rank in range(self.size)]

    def own_rows(self, num_rows: int) -> slice:
        """Return the rows of a global batch that this process takes."""
        sizes = self.share(num_rows)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def gather_rows(self, rows: torch.Tensor, num_rows: int) -> list[torch.Tensor]:
        """Gather the rows of every process, in order of rank; `rows` [b, D] are this process's `own_rows(num_rows)`."""
        if self.size == 1:
            return [rows]
        sizes = self.share(num_rows)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        return [part[:size] for part, size in zip(gathered, sizes, strict=True)]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum `.grad` over all processes, in place; parameters without one (on every process) are passed over."""
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        gradients = [p.grad for p in parameters if p.grad is not None]
        for index, gradient in enumerate(gradients):
            bucket.append(gradient)
            last = index + 1 == len(gradients)
            if last or gradients[index + 1].dtype != gradient.dtype or sum(g.numel() for g in bucket) > BUCKET_ELEMENTS:
                _sum_bucket(bucket)
                bucket = []

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any process."""
        if self.size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(int(flag), device=device)
        dist.all_reduce(total)
        return bool(total.item())

    def first_of(self, digest: str) -> str:
        """Return a hex digest as the first process has it: what all of them name a common folder by."""
        if self.size == 1:
            return digest
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        letters = torch.tensor(list(digest.encode("ascii")), dtype=torch.uint8, device=device)
        dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode("ascii")

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()


def _sum_bucket(bucket: Sequence[torch.Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def join(device: str = "auto") -> World:
    """Join what torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS, MASTER_ADDR) started.

    Args:
        device: `runtime.device`; on `cuda` each process takes the GPU of its number on this machine, or the one GPU
            that srun shows it.

    Raises:
        UserError: The device cannot be shared out, see `check_device`.
    """
    rank, size, local_rank = runtime.world_environment() or (0, 1, 0)
    if size == 1:
        return World()
    if not dist.is_initialized():
        number = 0 if runtime.shows_own_gpu_only() else local_rank
        if check_device(device, number + 1) == "cuda":
            torch.cuda.set_device(number)
            gpu = torch.device("cuda", number)
            dist.init_process_group("nccl", rank=rank, world_size=size, device_id=gpu)
        else:
            dist.init_process_group("gloo", rank=rank, world_size=size)
    return World(rank, size)


def check_device(device: str, processes: int) -> str:
    """Check that `processes` processes on this machine can share out `device`; return its kind, `cuda` or `cpu`.

    Raises:
        UserError: `device` is one that they cannot share out, or there are fewer GPUs than processes.
    """
    device = runtime.resolve_device(device)
    if device not in ("cuda", "cpu"):
        raise UserError(
            f"runtime.device: `{device}` is for one process; for several write `cuda`, on which each takes a GPU of "
            "its own, or `cpu`, or set runtime.processes to 1"
        )
    there = torch.cuda.device_count()
    if device == "cuda" and processes > there:
        raise UserError(
            f"runtime.processes: {processes} processes on this machine, but {there} GPUs; set it to at most that, or "
            "runtime.device to cpu"
        )
    return device


def leave() -> None:
    """Close the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def relaunch_if_asked(how: RuntimeSettings, module: str, params_file: Path, *arguments: str) -> None:
    """Replace this process by torchrun over `module` if `runtime.processes` > 1 and there is no world around us.

    The stage's command in dvc.yaml stays the same (a changed command would re-run the stage).

    Raises:
        UserError: See `check_device`.
    """
    if how.processes > 1 and runtime.world_environment() is None:
        check_device(how.device, how.processes)
        debug = ["--debug"] if "--debug" in sys.argv[1:] else []
        _exec_torchrun(how.processes, module, ["--params", str(params_file), *debug, *arguments])


def _exec_torchrun(processes: int, module: str, arguments: list[str]) -> NoReturn:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, runtime.available_cores() // processes)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*command, "-m", module, *arguments])  # noqa: S606
