"""Where tracking keeps things: the project's root, its MLflow store, and the id of this folder among others."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from pipeline_lib.core.artifacts import digest, write_text
from pipeline_lib.tracking.text import public

CODE = Path(__file__).resolve().parents[2]  # the folder that holds pipeline_lib and stages


def project_root(params_file: Path) -> Path:
    """Return the folder of store and spools: $DVC_ROOT, else what holds .dvc, else .git, else the file's own folder."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    folder = params_file.resolve().parent
    marked = [p for mark in (".dvc", ".git") for p in (folder, *folder.parents) if (p / mark).exists()]
    return marked[0] if marked else folder


def store_uri(root: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, else that of `mlflow.db` in `root`; a relative sqlite path starts from `root`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return f"sqlite:///{root / file}" if file != uri else uri


def store_file(root: Path) -> Path | None:
    """Return the database file of the store; None where it is none (a server, another database)."""
    uri = store_uri(root)
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def lock_file(root: Path) -> Path:
    """Return the file that is locked while the store is made, or a row: beside a database file, else in `root`."""
    file = store_file(root)
    return file.with_name(f"{file.name}.lock") if file else root / "mlflow.db.lock"


def store_name(root: Path) -> str:
    """Return `store_uri` as messages show it: without credentials, and `mlflow.db` for the default."""
    uri = store_uri(root)
    return "mlflow.db" if uri == f"sqlite:///{root}/mlflow.db" else public(uri)


def artifact_location(root: Path) -> str | None:
    """Return where a new experiment keeps artifacts: beside a database file; None lets an MLflow server choose."""
    uri = store_uri(root)
    if uri.split(":")[0] in ("http", "https", "databricks"):
        return None
    file = store_file(root)
    return ((file.parent if file else root) / "mlartifacts").as_uri()


def workspace(root: Path) -> str:
    """Return the id by which rows of this folder are told from those of other clones in a store that they share.

    It is made once and kept in a file, under `Client.locked`. The host's name would not do, since containers and
    cluster nodes change it between two stages.
    """
    if store_name(root) == "mlflow.db":
        return "here"
    mark = root / f"mlflow.db.workspace-{digest(str(root))[:8]}"  # a copied folder gets an id of its own
    if not mark.exists():
        write_text(mark, uuid.uuid4().hex[:12])
    return mark.read_text(encoding="utf-8")
