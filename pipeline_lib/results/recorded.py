"""What dvc.lock recorded of the code that made the outputs.

It does not stand in their manifests: most edits of code change no byte of an output, and would run every later stage
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError

CODE = ("stages", "pipeline_lib")


def check_code(root: Path) -> None:
    """Refuse code that was edited after the stages ran which the dvc.lock of the project in `root` recorded.

    Without a dvc.lock (stages that ran outside of DVC) nothing is known, and nothing refused.

    Raises:
        UserError: The code of any stage but `report` is another.
    """
    lock = root / "dvc.lock"
    if not lock.is_file():
        return
    stages = config.parse_yaml(config.read_text(lock, "run `dvc repro`"), lock.name).get("stages", {})
    for name, stage in stages.items():
        if name != "report" and (edited := _edited_code(stage, root)):
            raise UserError(
                f"{', '.join(edited)}: edited since stage `{name}` ran, by dvc.lock; run `dvc repro`, or "
                f"`dvc commit {name}` if that changes none of its results"
            )


def _edited_code(stage: Mapping[str, Any], root: Path) -> list[str]:
    """List the code of a stage that is there, and is not what dvc.lock recorded."""
    ignored = _ignored(root)
    code = [dep for dep in stage.get("deps", ()) if dep["path"].split("/")[0] in CODE and dep.get("hash") == "md5"]
    there = [dep for dep in code if os.path.exists(root / dep["path"])]
    return [dep["path"] for dep in there if _md5(root / dep["path"], ignored) != dep["md5"]]


def _ignored(root: Path) -> list[str]:
    """List the patterns of names that DVC leaves out, such as what Python and editors write beside the code."""
    file = root / ".dvcignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.rstrip("/") for line in lines if line and not line.startswith("#")]


def _md5(path: Path, ignored: Sequence[str]) -> str:
    """Return the hash that DVC gives a file or a folder."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    names = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    kept = [name for name in names if not any(fnmatch(part, p) for part in name.parts for p in ignored)]
    listed = {name.as_posix(): _md5(path / name, ignored) for name in kept}
    text = json.dumps([{"md5": listed[name], "relpath": name} for name in sorted(listed)], sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
