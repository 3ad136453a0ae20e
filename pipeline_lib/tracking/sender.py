"""The sending process as the stage sees it: `Sender` starts it, tells it what to send, and hears how that went.

The stage neither imports mlflow nor waits for the store, but at its end: a process of its own sends (`delivery.main`).
Both talk in JSON lines. Those of the stage are {"do": name, "number": 1, 2, ...} with these fields:

send  spool root experiment strict system_metrics  deliver this spool from now on; the run of one that it
      process environment every retry sample       replaces was dropped: delete that
push                                               deliver at once what there is
end   op                                           deliver what is left, and `op`, for which the disk may have had no
                                                   room; then wait for the next `send`

Each is answered by {"number", "error": why the delivery failed or null, "done": whether the store has the whole
spool}; number 0 tells that `error` changed in between, {"warning"} is a line for the log. When the stage dies, its end
of the pipe closes: the process then ends the run as KILLED and delivers what the spool holds.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_lib.tracking.place import CODE
from pipeline_lib.tracking.spool import Op, Spool

log = logging.getLogger("pipeline_lib.tracking")

SEND_EVERY = 2.0  # seconds between deliveries, at least
RETRY_EVERY = 30.0  # seconds between attempts to reach a store that failed
SAMPLE_EVERY = 10.0  # seconds between samples of the system metrics


class Sender:
    """The sending process; it serves one run at a time: `send`, then `end`.

    Attributes:
        done: Whether the store has the whole spool.
        error: Why the last delivery failed; None if it did not.
    """

    done = False
    error: str | None = None

    def __init__(self) -> None:
        paths = [str(CODE), os.environ.get("PYTHONPATH")]
        self._process = subprocess.Popen(  # its own group: a signal for the stage's is not for this process
            [sys.executable, "-c", "from pipeline_lib.tracking.delivery import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            process_group=0,
        )
        self._asked = self._answered = 0
        self._changed = threading.Condition()
        self._failed: Callable[[], None] = lambda: None
        self._listener = threading.Thread(target=self._listen, name="tracking", daemon=True)
        self._listener.start()

    @classmethod
    def take(cls) -> Sender:
        """Return a sender that has nothing to do: one that served an earlier run of this process, or a new one."""
        while _idle:
            sender = _idle.pop()
            if sender._process.poll() is None:
                sender.done, sender.error = False, None
                return sender
        return cls()

    def give_back(self) -> None:
        """Keep the process for a later run of this one, since importing mlflow takes long."""
        _idle.append(self)

    def send(self, spool: Spool, root: Path, experiment: str, *, failed: Callable[[], None], **options: bool) -> int:
        """Begin to send a spool; `failed` is called, by another thread, whenever a delivery failed.

        Sent while another spool is, it takes its place, and the run of that is deleted.

        Returns:
            The number to `wait` for, as from the methods below.
        """
        self._failed = failed
        environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        where = {"spool": str(spool.path), "root": str(root), "experiment": experiment}
        pace = {"every": SEND_EVERY, "retry": RETRY_EVERY, "sample": SAMPLE_EVERY}
        return self._ask("send", process=os.getpid(), environment=environment, **where, **pace, **options)

    def push(self) -> int:
        """Deliver what there is now."""
        return self._ask("push")

    def end(self, op: Op) -> int:
        """Deliver what is left, and `op`, the spool's last operation, even if the disk had no room for it."""
        return self._ask("end", op=op)

    def drop(self) -> int:
        """Delete the run, and its spool."""
        return self._ask("drop")

    def wait(self, number: int, timeout: float | None) -> bool:
        """Wait until the command with this number has been tried; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._answered >= number, timeout)

    def kill(self, error: str) -> None:
        """Kill the process because of `error`; what the store does not have stays in the spool."""
        self._failed = lambda: None
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self.error = error

    def _ask(self, what: str, **details: Any) -> int:
        self._asked += 1
        line = json.dumps({"do": what, "number": self._asked, **details})
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died: `_listen` says so
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        return self._asked

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._hear(json.loads(line))
        self._hear({"number": sys.maxsize, "error": "the sending process died", "done": False})

    def _hear(self, answer: dict[str, Any]) -> None:
        if "warning" in answer:
            log.warning("%s", answer["warning"])
            return
        with self._changed:
            self.error, self.done = answer["error"], answer["done"]
            self._answered = max(self._answered, answer["number"])
            self._changed.notify_all()
        if self.error:
            self._failed()


_idle: list[Sender] = []
