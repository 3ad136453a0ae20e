"""What dvc.lock recorded of the run that made the outputs: parameters and code, where the manifests do not tell.

Neither stands in the manifests of data/base and data/shards: most edits of either change no byte of these outputs, and
would run every later stage again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.parameters import dotted_keys

UNTOLD = ("base", "shard")  # stages whose manifests name no parameters
CODE = ("stages", "pipeline_lib")


def check_recorded(params_file: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters and code that were edited after the stages ran which dvc.lock beside `params_file` recorded.

    Without a dvc.lock (stages that ran outside of DVC) nothing is known, and nothing refused.

    Raises:
        UserError: A parameter of `base` or `shard`, or the code of any stage but `report`, is another.
    """
    lock = params_file.parent / "dvc.lock"
    if not lock.is_file():
        return
    stages = config.parse_yaml(lock.read_text(encoding="utf-8"), lock.name).get("stages", {})
    for name, stage in stages.items():
        found = list(differences(stage, parameters)) if name in UNTOLD else []
        found += [] if name == "report" else _edited_code(stage, params_file.parent)
        if found:
            raise UserError(
                f"{params_file}: not what stage `{name}` ran with, by dvc.lock: {'; '.join(found)}; run `dvc repro`, "
                f"or `dvc commit {name}` if that changes none of its results"
            )


def differences(stage: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parameters that are others now than dvc.lock says of a stage, each with both values."""
    was, now = dotted_keys(stage.get("params", {}).get("params.yaml", {})), dotted_keys(parameters)
    for key in was:
        if key in now and now[key] != was[key]:
            yield f"{key} is {now[key]}, was {was[key]}"


def _edited_code(stage: Mapping[str, Any], root: Path) -> list[str]:
    """List the code of a stage that is there, and is not what dvc.lock recorded."""
    ignored = _ignored(root)
    code = [dep for dep in stage.get("deps", ()) if dep["path"].split("/")[0] in CODE and dep.get("hash") == "md5"]
    there = [dep for dep in code if (root / dep["path"]).exists()]
    edited = [dep["path"] for dep in there if _md5(root / dep["path"], ignored) != dep["md5"]]
    return [f"{', '.join(edited)} was edited"] if edited else []


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
