"""Items of a sequence, read ahead by processes that may die or not even start: then this process reads the rest itself.

Each process has a pipe of its own, whose end tells that it died, at any moment, in the middle of an item too. torch's
DataLoader has one queue for all: a process killed while it writes there stops the others and leaves the reader waiting
for ever; and tensors that travel through /dev/shm, which in a container (64 MB) is too small for a few batches, get
lost there.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch

from pipeline_lib.core import runtime

log = logging.getLogger(__name__)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What is read: picklable, each item a nest of tuples, lists and dicts with tensors in it."""

    def __getitem__(self, index: int, /) -> T_co:
        """Read item number `index`."""

    def __len__(self) -> int:
        """Count the items."""


class _Reader(NamedTuple):
    """A process that reads, and where its items arrive."""

    process: BaseProcess
    arrivals: Connection


def read_ahead(items: Items[T], *, num_workers: int, pin_memory: bool = False) -> Iterator[T]:
    """Yield `items[0]`, `items[1]`, ... in order, read ahead by `num_workers` processes; 0: as they are asked for.

    Where the processes cannot start, or one is killed, that is said once, and this process reads what is left.

    Args:
        items: What is read.
        num_workers: Number of processes; each has read one item more than was asked for.
        pin_memory: Whether tensors are put into memory that a GPU can copy from while it computes.

    Raises:
        Exception: What reading an item raises.
    """
    with ThreadPoolExecutor(1) as thread, _readers(items, min(num_workers, len(items))) as readers:

        def take(index: int) -> _Carried | None:
            carried = _receive(readers, index)
            return carried.pin_memory() if carried and pin_memory else carried

        taken = thread.submit(take, 0)
        for index in range(len(items)):
            carried = taken.result()
            if index + 1 < len(items):
                taken = thread.submit(take, index + 1)
            if carried is None:
                item = items[index]
                yield _map(item, torch.Tensor, torch.Tensor.pin_memory) if pin_memory else item
            else:
                yield cast(T, carried.item)


@contextmanager
def _readers(items: Items[Any], count: int) -> Iterator[list[_Reader]]:
    """Start the processes, and end them; none, and a warning, where there is no room for them."""
    readers: list[_Reader] = []
    # Forked where `runtime.end_with_parent` sees to their end; Python 3.14 would have a server between fork them.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        for number in range(count):
            arrivals, sends = context.Pipe(duplex=False)
            process = context.Process(target=_read, args=(items, number, count, sends), daemon=True)
            process.start()
            sends.close()  # the only other end is the process's: it closes when that dies
            readers.append(_Reader(process, arrivals))
    except OSError as error:
        log.warning("no reading processes can be started (%s); this process reads by itself", error)
        _end(readers)
    try:
        yield readers
    finally:
        _end(readers)


def _end(readers: list[_Reader]) -> None:
    """Forget the processes, then kill them: whoever waits for one finds that it is wanted no more."""
    processes = [process for process, _ in readers]
    readers.clear()
    for process in processes:
        process.kill()
        process.join()


def _read(items: Items[Any], first: int, step: int, sends: Connection) -> None:
    """Read every `step`-th item and send it, None if it cannot be read; the pipe holds the process back meanwhile."""
    runtime.end_with_parent()
    torch.set_num_threads(1)
    for index in range(first, len(items), step):
        try:
            carried = _Carried(items[index])
        except Exception:  # the stage's process gets the same one, where it can be understood
            carried = None
        try:
            sends.send(carried)
        except BrokenPipeError:
            return


def _receive(readers: list[_Reader], index: int) -> _Carried | None:
    """Return the item; None where it is to be read here, with a warning where its process died."""
    if not readers:
        return None
    try:
        carried: _Carried | None = readers[index % len(readers)].arrivals.recv()
    except (EOFError, OSError):
        if readers:
            log.warning("a reading process died, probably for lack of memory; the rest is read without any")
            _end(readers)
        return None
    return carried


class _Carried:
    """An item whose tensors are pickled as arrays."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def pin_memory(self) -> _Carried:
        """Return the item in pinned memory."""
        return _Carried(_map(self.item, torch.Tensor, torch.Tensor.pin_memory))

    def __reduce__(self) -> tuple[Callable[..., _Carried], tuple[Any]]:
        return _unpack, (_map(self.item, torch.Tensor, _Array),)


class _Array:
    """A tensor on its way."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._array: np.ndarray = tensor.numpy()

    def tensor(self) -> torch.Tensor:
        """Return the tensor again."""
        return torch.from_numpy(self._array)


def _unpack(item: Any) -> _Carried:
    return _Carried(_map(item, _Array, _Array.tensor))


def _map(item: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any] | None = None) -> Any:
    """Return a nest with everything of a `kind` changed; what stands in it twice, stands in the result twice."""
    done = {} if done is None else done
    if isinstance(item, kind):
        if id(item) not in done:
            done[id(item)] = change(item)
        return done[id(item)]
    if isinstance(item, dict):
        return {key: _map(value, kind, change, done) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        changed: Sequence[Any] = [_map(value, kind, change, done) for value in item]
        return type(item)(*changed) if hasattr(item, "_fields") else type(item)(changed)
    return item
