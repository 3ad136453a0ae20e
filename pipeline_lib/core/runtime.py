"""How a stage runs: signals, device, threads, precision, determinism. Nothing here knows CLIP.

SIGTERM (and the death of the parent, on Linux) and Ctrl-C end a stage in order: loops ask `stop_requested()` between
steps and write a checkpoint. torch is imported only by those who need it.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import AtLeastOne, Count, section

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_stop_signal: int | None = None


@section("runtime")
class RuntimeSettings:
    """How, not what: nothing here may change a result beyond rounding, so no stage re-runs for it."""

    device: str
    """Device of the towers: `cpu`, `cuda` (or `cuda:1`), `mps`, or `auto`: the first of cuda, mps, cpu that is here."""

    num_threads: AtLeastOne | None
    """Number of torch's threads in each process; null: as torch chooses. Another number may move a last bit."""

    num_workers: Count
    """Number of processes that decode images; 0: the stage decodes by itself. `shard` takes one a core, whatever this
    says.
    """

    processes: AtLeastOne
    """Number of processes, one a GPU, as which `cache_teacher`, `refine` and `evaluate` run; above 1 they relaunch
    themselves under torchrun.
    """

    deterministic: bool
    """Whether only kernels run that give the same bits again."""

    checkpoint_every: AtLeastOne
    """Number of optimiser steps of `refine` between checkpoints."""

    progress: bool
    """Whether progress bars are shown, where there is a terminal."""


class Stopped(SystemExit):
    """Raised by a loop that wrote its checkpoint because a signal asked it to end; exit code 128 + signal."""

    def __init__(self) -> None:
        """Set the exit code by the shell's convention."""
        super().__init__(128 + (_stop_signal or signal.SIGTERM))


def install_signals() -> None:
    """Make SIGTERM and Ctrl-C ask for an orderly stop, and the parent's death send SIGTERM (Linux only).

    A second signal ends the process where it is.
    """

    def handle(number: int, _frame: object) -> None:
        global _stop_signal
        if _stop_signal is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped
        _stop_signal = number
        log.warning("signal %s: stopping at the next step (a second one stops at once)", signal.Signals(number).name)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_signal() -> int | None:
    """Return the number of the signal that asked this process to end, or None."""
    return _stop_signal


def stop_requested() -> bool:
    """Return whether a signal asked this process to end; a loop then checkpoints and raises `Stopped`."""
    return _stop_signal is not None


def until_stopped(items: Iterable[T]) -> Iterator[T]:
    """Yield the items until a signal asks this process to end: for loops that have nothing to write before they do.

    Raises:
        Stopped: A signal did.
    """
    for item in items:
        stop_if_asked()
        yield item


def stop_if_asked() -> None:
    """End here if a signal asked this process to: between parts of work that leave nothing half done.

    Raises:
        Stopped: A signal did.
    """
    if stop_requested():
        raise Stopped


def leave_ctrl_c_to_parent(_worker: int = 0) -> None:
    """Ignore Ctrl-C in a worker process, which it reaches as well: the stage decides what becomes of its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent(_worker: int = 0) -> None:
    """Let a worker process, forked by the stage, end when the stage does, however that ends; leave signals to it.

    A SIGTERM to the whole process group so ends a stage in one line; the stage kills its workers, which it forked with
    its own handler.
    """
    leave_ctrl_c_to_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # gone before it could be told so
        os._exit(1)


def available_cores() -> int:
    """Count the processors that this process may use; in a container or a job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_environment() -> tuple[int, int, int] | None:
    """Return rank, number of processes and local rank if torchrun or srun (MASTER_ADDR) started this one, else None.

    Raises:
        UserError: srun started several processes and did not tell them where to meet.
    """
    if "RANK" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif _srun_tasks() > 1:
        if "MASTER_ADDR" not in os.environ:
            raise UserError("srun: MASTER_ADDR and MASTER_PORT are not set; export them, or use runtime.processes")
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return None
    rank, size, local_rank = (int(os.environ.get(name, one)) for name, one in zip(names, (0, 1, 0), strict=True))
    return rank, size, local_rank


def _srun_tasks() -> int:
    """Count the processes of the job step that this one is in; a batch script is one, whatever its job was given."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_PROCID" in os.environ else 1


def shows_own_gpu_only() -> bool:
    """Return whether srun binds a GPU of its own to each of several processes, which then sees no other."""
    import torch

    bound = {"SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND"} & os.environ.keys()
    return bool(bound) and "RANK" not in os.environ and _srun_tasks() > 1 and torch.cuda.device_count() == 1


def resolve_device(name: str) -> str:
    """Resolve `auto` to cuda, else mps, else cpu; return any other name as it is."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def pick_device(name: str) -> torch.device:
    """Return the device of this name (`auto`: cuda, else mps, else cpu), tried out with one number.

    Raises:
        UserError: There is no device of this name, or it is not there.
    """
    import torch

    if name.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"runtime.device: `{name}` is no device; write cpu, cuda (or cuda:1), mps or auto")
    name = resolve_device(name)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"runtime.device: `{name}` is not usable here ({str(error).splitlines()[0]}); try auto"
        ) from None
    return device


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let matrix products and convolutions on NVIDIA GPUs round fp32 inputs to TF32 (10 bits) inside the block."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if enabled else "highest")
        torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Let towers compute in `precision` inside the block: fp32, tf32, or bf16 (autocast: weights stay fp32)."""
    import torch

    with tf32(precision == "tf32"), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks instead of returning them: a CPU step otherwise faults every page anew.

    A training step allocates and frees the same large tensors again and again; by default each comes from `mmap` and is
    zeroed by the kernel at first touch. `make bench` prints the ratio. Does nothing on other C libraries.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def give_freed_memory_back() -> None:
    """Return to the system what `keep_freed_memory` keeps: between a part that needs much memory and another one."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def prepare(*, seed: int, num_threads: int | None, deterministic: bool) -> None:
    """Seed every global generator, set threads and allocator, choose deterministic kernels and plain fp32 (no TF32)."""
    import numpy as np
    import torch

    keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a tenth
