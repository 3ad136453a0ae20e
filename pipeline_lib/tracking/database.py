"""The file of a local store: made and upgraded beside its place and renamed into it, so that it is never half a store.

MLflow makes its tables one by one, and an older store's anew, in the file itself: whoever is killed meanwhile leaves
one that neither opens nor upgrades. It also writes down absolute places of artifacts, which a moved project leaves
behind. All functions here are called under `Client.locked`.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking.text import reason

log = logging.getLogger("pipeline_lib.tracking")
PLACES = (  # columns that hold the absolute place of an artifact: table, key, column
    ("experiments", "experiment_id", "artifact_location"),
    ("runs", "run_uuid", "artifact_uri"),
    ("logged_models", "model_id", "artifact_location"),
)
BESIDE = ("-journal", "-wal", "-shm")  # endings of the files that sqlite keeps beside a database


def make_whole(file: Path) -> None:
    """Make the store `file` where there is none, and upgrade an older MLflow's; one of this MLflow is left alone.

    The store as it was before an upgrade is kept as `<name>.before-upgrade`.

    Raises:
        UserError: It is no database, or MLflow can neither read nor upgrade it; it stays as it was.
        MlflowException: A new store cannot be made.
    """
    is_new = not file.exists() or file.stat().st_size == 0  # empty: whoever opened it first was killed
    if not is_new and _is_current(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _beside(file) as work:
        if is_new:
            _let_mlflow_make(work)
        else:
            _upgrade(file, work)
        _remove(file.with_name(file.name + ending) for ending in BESIDE)  # of the one that goes
        os.replace(work, file)


def _is_current(file: Path) -> bool:
    """Return whether a store has the tables of this MLflow, in their latest form."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # which declares all tables
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _get_latest_schema_revision

    try:
        with closing(sqlite3.connect(file)) as database:
            found = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            revision = database.execute("select version_num from alembic_version") if "alembic_version" in found else []
            revisions = [number for (number,) in revision]
    except sqlite3.OperationalError:  # busy, or not to be opened: that is no fault of its content
        raise
    except sqlite3.DatabaseError as error:
        raise _broken(file, error) from None
    return found >= set(Base.metadata.tables) and revisions == [_get_latest_schema_revision()]


def _upgrade(file: Path, work: Path) -> None:
    """Upgrade a copy of `file` in `work`; keep `file` under another name too."""
    with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(work)) as copy:
        old.backup(copy)
    try:
        _let_mlflow_upgrade(work)
        _let_mlflow_make(work)
    except Exception as error:
        if "Can't locate revision" in str(error):
            raise UserError(f"{file.name} is of a newer MLflow than the one installed; `make install`") from None
        raise _broken(file, error) from None
    kept = file.with_name(f"{file.name}.before-upgrade")
    shutil.copyfile(file, kept)
    log.warning("%s was upgraded for this MLflow; as it was before, it is kept as %s", file.name, kept.name)


def _let_mlflow_upgrade(work: Path) -> None:
    """Bring the tables to their latest form; MLflow does by itself only where one is missing."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{work}")
    _initialize_tables(engine)
    engine.dispose()


def _let_mlflow_make(work: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{work}", "./mlruns")
    store.engine.dispose()


def _broken(file: Path, error: Exception) -> UserError:
    name = file.name
    return UserError(
        f"{name} is broken ({reason(error)[:60]}): `mv {name} {name}.broken`, run again, and send what waits with "
        "`python -m pipeline_lib.lineage sync`"
    )


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """Yield a free name beside `file`, and remove what a killed process left under one, and what the block leaves."""
    work = file.with_name(f"{file.name}.{os.getpid()}.making")
    _remove(file.parent.glob(f"{file.name}.*.making*"))
    try:
        yield work
    finally:
        _remove(file.parent.glob(f"{work.name}*"))


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink(missing_ok=True)


def follow_move(file: Path, location: str) -> None:
    """Put `location` in the place of artifact folders of the same name elsewhere: the project was moved or copied.

    What is at the former place and not at the new one (artifacts were not copied along) stays there for its run; new
    runs log to `location`.

    Args:
        file: The store.
        location: URI of the folder where the artifacts of new runs go.
    """
    with closing(sqlite3.connect(file)) as database, database:
        here = [uri for (uri,) in database.execute("select artifact_location from experiments") if uri]
        for former in sorted({uri for uri in here if _is_elsewhere(uri, location)}):
            for table, key, column in PLACES:
                _move(database, table, key, column, former, location)
            log.warning("the project was moved or copied: artifacts go to %s, no longer to %s", location, former)


def _is_elsewhere(uri: str, location: str) -> bool:
    """Return whether `uri` is another local folder of the same name as `location`'s, and not by a link the same one."""
    if not uri.startswith(("file:", "/")) or uri == location or _path(uri).name != _path(location).name:
        return False
    return not (_path(uri).exists() and _path(location).exists() and _path(uri).samefile(_path(location)))


def _move(database: sqlite3.Connection, table: str, key: str, column: str, former: str, location: str) -> None:
    rows = database.execute(f"select {key}, {column} from {table}").fetchall()  # noqa: S608  # names of ours
    for number, uri in rows:
        if uri == former or (uri or "").startswith(f"{former}/"):
            now = location + uri.removeprefix(former)
            if table == "experiments" or _path(now).exists() or not _path(uri).exists():
                database.execute(f"update {table} set {column} = ? where {key} = ?", (now, number))  # noqa: S608


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)
