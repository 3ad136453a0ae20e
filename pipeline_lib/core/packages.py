"""Files inside installed packages, found without importing the package."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def package_file(package: str, name: str) -> Path | None:
    """Find a data file of an installed package; None where package or file is not there."""
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None
