"""The thread that brings a spool to the store while the stage works."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pipeline_lib.tracking.describe import now
from pipeline_lib.tracking.spool import Op, Spool
from pipeline_lib.tracking.store import Store, Target, reason

log = logging.getLogger("pipeline_lib.tracking")

SEND_EVERY, SEND_SHARE = 2.0, 0.02  # seconds between deliveries, and the largest share of the time they may take
RETRY_EVERY = 30.0  # seconds between attempts to reach a store that failed


class Sender(threading.Thread):
    """Sends a spool to the store, line after line, while the stage works; keeps trying when the store fails.

    Args:
        spool: What to send. Assign another one to drop the run just begun and send that (see `TrackedRun.resume`).
        connect: Opens the store.
        collect: Called before each delivery, to bring the latest points into the spool.
        failed: Called when a delivery failed.
    """

    def __init__(
        self, spool: Spool, connect: Callable[[], Store], collect: Callable[[], None], failed: Callable[[], None]
    ) -> None:
        super().__init__(name="tracking", daemon=True)
        self.spool = self._sending = spool
        self.position = 0  # bytes of the spool that the store has
        self.target: Target | None = None  # the run in the store, once it is there
        self.error: str | None = None  # why the last delivery failed
        self._connect, self._collect, self._failed = connect, collect, failed
        self._store: Store | None = None
        self._moved, self._awake = threading.Condition(), threading.Event()
        self._ending, self._abandoned, self._retry_at = False, False, 0.0

    def run(self) -> None:
        """Deliver every `SEND_EVERY` seconds, or when woken, until `finish`."""
        pause = 0.0
        while True:
            self._awake.wait(pause)
            self._awake.clear()
            ending, opening = self._ending, self.target is None  # beginning a run takes longer than sending to it
            began = time.monotonic()
            self._attempt(due=self.error is None or ending or began >= self._retry_at)
            if ending:
                return
            pause = SEND_EVERY if opening or self.error else max(SEND_EVERY, (time.monotonic() - began) / SEND_SHARE)

    def wake(self) -> None:
        """Deliver now."""
        self._awake.set()

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Block until `condition` holds after a delivery, or `timeout` seconds have passed."""
        with self._moved:
            self._moved.wait_for(condition, timeout)

    def finish(self, timeout: float | None) -> None:
        """Deliver what is left and end the thread; after `timeout` seconds leave the rest to a later delivery."""
        self._ending = True
        self._awake.set()
        if self.is_alive():
            self.join(timeout)
        self._abandoned = True  # if it still waits for an answer, it sends nothing more

    def is_done(self) -> bool:
        """Whether the thread has ended and the store has everything."""
        delivered = self._sending is self.spool and self.position >= self.spool.size()
        return not self.is_alive() and self.error is None and delivered

    def _attempt(self, *, due: bool) -> None:
        error = self.error
        try:
            self._collect()
            if due:
                self._deliver()
                error = None
        except Exception as failure:
            log.debug("delivery failed", exc_info=True)
            error, due = reason(failure), True
        with self._moved:
            self.error = error
            self._retry_at = time.monotonic() + RETRY_EVERY if due else self._retry_at
            self._moved.notify_all()
        if error and due:
            self._failed()

    def _deliver(self) -> None:
        if self._store is None:
            self._store = self._connect()
        if self._sending is not self.spool:
            if self.target:
                self._store.discard(self.target)
            self._sending.delete()
            self._sending, self.position, self.target = self.spool, 0, None
        for op, position in self._sending.read(self.position):
            if self._abandoned:
                return
            self.target = self._store.apply(op, self._sending, self.target)
            self.position = position


def deliver(spool: Spool, store: Store) -> bool:
    """Send the whole spool of a run that has ended (or was killed) and remove it.

    Returns:
        False, with nothing done, if the run is still alive.
    """
    if not spool.open():
        return False
    try:
        target: Target | None = None
        last: Op = {}
        for op, _ in spool.read():
            target, last = store.apply(op, spool, target), op
        if target and last["op"] != "end":
            store.apply({"op": "end", "status": "KILLED", "message": "", "time": now()}, spool, target)
        spool.delete()
    finally:
        spool.close()
    return True
