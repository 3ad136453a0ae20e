"""Which parameters made data/base and data/shards: a file beside each folder, `<folder>.parameters.json`.

They do not stand in the manifests there, as those of later stages do: most edits of `data`, `base` and `shard` change
no byte of these outputs (a limit above the size of the set, or one that no image reaches), and would run every later
stage again. Of all stages only `report` depends on these files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import section_of


def record_path(folder: Path) -> Path:
    """Return where the record of a folder lies."""
    return folder.with_name(f"{folder.name}.parameters.json")


def write_made_with(folder: Path, *sections: Any) -> None:
    """Write beside a finished output which sections of params.yaml, as loaded, made it."""
    parameters = {section_of(type(section)): dataclasses.asdict(section) for section in sections}
    record = {"digest": artifacts.read_manifest(folder)["digest"], "parameters": parameters}
    artifacts.write_json(record_path(folder), record)


def read_made_with(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read the parameters that made an output, by section.

    Raises:
        UserError: There is no record, or it is one of another output.
    """
    path = record_path(folder)
    record = artifacts.read_json(path) if path.is_file() else {}
    if not isinstance(record, dict) or record.get("digest") != artifacts.read_manifest(folder)["digest"]:
        raise UserError(f"{path}: missing, or of another {folder}: its parameters are unknown; run `dvc repro`")
    return record["parameters"]
