"""The licence that lies beside a model: stated on its card, or as a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub

CARD = "README.md"


def licence_of(card: Path, place: str = "") -> str | None:
    """Return the licence that a model card states in its metadata, and where it is found; None without one."""
    try:
        said = huggingface_hub.ModelCard.load(card).data.to_dict()
    except Exception:  # no card, or its YAML cannot be read
        return None
    name, link = said.get("license"), str(said.get("license_link") or place)
    if not isinstance(name, str) or name == "other":
        name = said.get("license_name")
    if not isinstance(name, str):
        return f"see {link}" if "://" in link else None
    return f"{name} ({link})" if "://" in link else name


def licence_beside(folder: Path) -> str | None:
    """Return what the card in `folder` states, or which file holds the licence; None without either."""
    files = licence_files(folder)
    return licence_of(folder / CARD) or (f"see {files[0].name} beside the model" if files else None)


def licence_files(folder: Path) -> list[Path]:
    """List the files in `folder` that hold a licence or a notice that it asks to keep."""
    return sorted(path for kind in ("LICEN[CS]E*", "NOTICE*") for path in folder.glob(kind) if path.is_file())


def copy_licences(source: Path, target: Path) -> None:
    """Copy those files to `target`."""
    for path in licence_files(source):
        shutil.copyfile(path, target / path.name)
