"""Which devices several processes may compute on, and which backend they join with; the arithmetic: test_gradients."""

import re

import pytest
import torch
import torch.distributed as dist

from pipeline_lib.core import distributed
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, and what a process that joins does there."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: done.append(number))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: done.append(backend))
    return done


def start_by_torchrun(monkeypatch, local_rank, size):
    for name, value in (("RANK", local_rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("device", "does"), [("auto", [1, "nccl"]), ("cuda", [1, "nccl"]), ("cpu", ["gloo"])])
def test_processes_join_on_the_device_of_runtime(gpus, monkeypatch, device, does):
    start_by_torchrun(monkeypatch, 1, 2)
    assert distributed.join(device) == World(1, 2)
    assert gpus == does


def test_tasks_of_srun_that_see_one_gpu_each_take_it(gpus, monkeypatch):
    """`srun --gpus-per-task=1` hides the GPUs of the others, so that every task's own is number 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("PROCID", 3), ("STEP_NUM_TASKS", 4), ("LOCALID", 3)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("MASTER_ADDR", "node1")
    with pytest.raises(UserError, match="4 processes on this machine, but 1 GPUs"):  # not bound: they would share it
        distributed.join("auto")
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert distributed.join("auto") == World(3, 4)
    assert gpus == [0, "nccl"]


@pytest.mark.parametrize(
    ("device", "local_rank", "message"),
    [
        ("cuda:1", 0, "runtime.device: `cuda:1` is for one process; for several write `cuda`"),
        ("mps", 0, "runtime.device: `mps` is for one process"),
        ("auto", 2, "runtime.processes: 3 processes on this machine, but 2 GPUs; set it to at most that"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(gpus, monkeypatch, device, local_rank, message):
    start_by_torchrun(monkeypatch, local_rank, 4)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        distributed.join(device)
    assert gpus == []


def test_it_is_refused_before_the_processes_start(gpus):
    with pytest.raises(UserError, match=r"^runtime\.processes: 8 processes on this machine, but 2 GPUs"):
        distributed.check_device("auto", 8)
    assert distributed.check_device("cpu", 8) == "cpu"
