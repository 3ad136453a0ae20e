"""Items of a sequence, read ahead by processes that may die or not even start: then this process reads the rest itself.

Tensors come through pipes, not through /dev/shm, which in a container (64 MB) is too small for a few batches: torch's
workers then lose an item, and whoever waits for it waits for ever.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What is read: picklable, each item a nest of tuples, lists and dicts with tensors in it."""

    def __getitem__(self, index: int, /) -> T_co:
        """Read item number `index`."""

    def __len__(self) -> int:
        """Count the items."""


def read_ahead(items: Items[T], *, num_workers: int, pin_memory: bool = False) -> Iterator[T]:
    """Yield `items[0]`, `items[1]`, ... in order, read ahead by `num_workers` processes; 0: as they are asked for.

    Where the processes cannot start, or one is killed, that is said once, and this process reads what is left.

    Args:
        items: What is read.
        num_workers: Number of processes.
        pin_memory: Whether tensors are put into memory that a GPU can copy from while it computes.

    Raises:
        Exception: What reading an item raises.
    """
    ahead = _start(items, num_workers, pin_memory) if num_workers and len(items) else None
    for index in range(len(items)):
        item = None
        if ahead is not None:
            try:
                item = next(ahead)
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):
                    raise
                log.warning("a reading process died, probably for lack of memory; the rest is read without any")
                ahead = None
        item = item or _Carried.read(items, index)
        yield cast(T, (item.pin_memory() if pin_memory and ahead is None else item).open())


def _start(items: Items[Any], num_workers: int, pin_memory: bool) -> Iterator[_Carried] | None:
    """Start the processes; None, and a warning, where there is no room for them."""
    loader = DataLoader(
        _Carrying(items),
        batch_size=None,
        collate_fn=_keep,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=runtime.end_with_parent,
    )
    try:
        probes: list[Any] = [multiprocessing.Queue() for _ in range(num_workers + 2)]
        for probe in probes:  # as many as torch is about to make,
            probe.close()  # which, where they fail, ends with a traceback that nobody can catch
        with _keep_child_signal():
            return iter(loader)
    except (OSError, RuntimeError) as error:
        log.warning("no reading processes can be started (%s); this process reads by itself", error)
        return None


@contextmanager
def _keep_child_signal() -> Iterator[None]:
    """Undo that torch raises an error wherever this process is when a worker dies; the next item asked for tells."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _keep(item: Any) -> Any:
    return item


class _Carrying(Dataset["_Carried"]):
    """Items, ready to travel."""

    def __init__(self, items: Items[Any]) -> None:
        self._items = items

    def __getitem__(self, index: int) -> _Carried:
        return _Carried.read(self._items, index)

    def __len__(self) -> int:
        return len(self._items)


class _Carried:
    """An item, or the error that a person is to read, whose tensors are pickled as arrays."""

    def __init__(self, item: Any) -> None:
        self._item = item

    @classmethod
    def read(cls, items: Items[Any], index: int) -> _Carried:
        """Read item number `index`."""
        try:
            return cls(items[index])
        except UserError as error:  # torch would wrap it in the traceback of the other process
            return cls(error)

    def open(self) -> Any:
        """Return the item, or raise the error that reading it gave."""
        if isinstance(self._item, UserError):
            raise self._item
        return self._item

    def pin_memory(self) -> _Carried:
        """Return the item in pinned memory; torch calls it by this name too."""
        return _Carried(_map(self._item, torch.Tensor, torch.Tensor.pin_memory))

    def __reduce__(self) -> tuple[Callable[..., _Carried], tuple[Any]]:
        return _unpack, (_map(self._item, torch.Tensor, _Array),)


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
