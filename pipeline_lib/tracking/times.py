"""How long stages took here, and on what: a line per output in a file beside the store, which no output depends on.

Outputs hold no time, so that equal inputs give equal bytes. What a person is shown of a run reads it here, by the
digest of the output: an output that was pulled, or came from DVC's cache of another machine, has no line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_lib.core import runtime
from pipeline_lib.tracking.place import project_root

FILE = ".stage-times.jsonl"


def note(root: Path, *, stage: str, output: str, **facts: Any) -> None:
    """Add the line of an output: what took it `seconds`, on which `machine`, whether it was `resumed` in between."""
    with (root / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "output": output, **facts}) + "\n")


def machine(device: str, processes: str) -> str:
    """Name what this process computes on; empty where it has not loaded torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    device = runtime.resolve_device(device)
    what = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return f"{device}, {what}" + (f", {processes} processes" if processes != "1" else "")


def time_taken(params_file: Path, outputs: Mapping[str, str]) -> str:
    """Say on what and in which time these outputs (stage -> digest) were made, as far as that was here.

    Empty where none was, or nothing was tracked. The machine is that of the slowest stage.
    """
    lines: dict[str, dict[str, Any]] = {}
    with suppress(FileNotFoundError), (project_root(params_file) / FILE).open(encoding="utf-8") as file:
        for text in file:
            with suppress(ValueError, KeyError, TypeError):  # a line torn by a kill
                line = json.loads(text)
                lines[line["output"]] = line
    known = [lines[output] for output in outputs.values() if output in lines]
    if not known:
        return ""
    slowest = max(known, key=lambda line: line["seconds"])
    times = [f"{x['stage']} {x['seconds'] / 60:.1f} min{' since it was resumed' * x['resumed']}" for x in known]
    return "; ".join(filter(None, [slowest["machine"], ", ".join(times)]))
