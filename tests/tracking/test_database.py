"""A store is whole or not there, whatever is killed; what MLflow no longer has, or has elsewhere, blocks nothing."""

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline_lib import tracking
from pipeline_lib.core.errors import UserError
from pipeline_lib.tracking import database
from pipeline_lib.tracking.spool import Spool
from tests.tracked_project import client_of, do, log_note, make_project, python, runs_of

OLD = "cbc13b556ace"  # a revision of MLflow 2, with runs, experiments and models
KILLED_IN_BETWEEN = """
    import os
    from pathlib import Path
    import mlflow.store.db.utils as db
    from pipeline_lib.tracking.client import Client

    db._upgrade_db = lambda engine: os.kill(os.getpid(), 9)  # the first tables are there, the others are not
    Client(Path.cwd(), "clip-refine")
"""


def die_in_between(folder):
    process = python(KILLED_IN_BETWEEN, folder)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def write_old_store(file):
    """A store of an earlier MLflow with one experiment."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{file}")
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{file}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLD)
    engine.dispose()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("insert into experiments (experiment_id, name, lifecycle_stage) values (7, 'mine', 'active')")


def test_a_store_whose_maker_was_killed_is_made_by_the_next(tmp_path):
    params = make_project(tmp_path, store=False)
    die_in_between(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").touch()  # as another program leaves it that is killed when it has opened the file
    do("base", params)
    assert [run.info.status for run in runs_of(client_of(tmp_path), "stage")] == ["FINISHED"]
    assert not list(tmp_path.glob("*making*"))


def test_a_store_whose_upgrade_was_killed_is_as_it_was_and_upgraded_by_the_next(tmp_path):
    params = make_project(tmp_path, store=False)
    write_old_store(tmp_path / "mlflow.db")
    before = (tmp_path / "mlflow.db").read_bytes()
    die_in_between(tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    do("base", params)
    assert client_of(tmp_path).get_experiment_by_name("mine").experiment_id == "7"
    assert (tmp_path / "mlflow.db.before-upgrade").read_bytes() == before
    assert not list(tmp_path.glob("*making*"))


@pytest.mark.parametrize("content", ["half", "none"])
def test_a_broken_store_is_one_sentence_with_the_way_out_and_stays(tmp_path, content):
    params = make_project(tmp_path, store=content == "half")
    file = tmp_path / "mlflow.db"
    if content == "half":  # as MLflow leaves it when it is killed while it makes it in its place
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("drop table alembic_version")
            database.execute("drop table inputs")
    else:
        file.write_bytes(b"no database" * 100)
    before = file.read_bytes()
    with pytest.raises(
        UserError, match=r"mlflow\.db is broken \(.*\): `mv mlflow\.db mlflow\.db\.broken`.*lineage sync`"
    ):
        do("base", params)
    assert file.read_bytes() == before
    file.rename(tmp_path / "mlflow.db.broken")
    do("base", params)
    assert len(runs_of(client_of(tmp_path), "stage")) == 1


@pytest.mark.parametrize("way", ["moved", "copied", "copied without artifacts"])
def test_artifacts_go_to_where_the_project_is(tmp_path, way):
    """And those of earlier runs are found where they are."""
    old, new = tmp_path / "old", tmp_path / "new"
    with tracking.stage_run("base", make_project(old)) as run:
        log_note(run)
    if way == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    if way == "copied without artifacts":
        shutil.rmtree(new / "mlartifacts")
    with tracking.stage_run("shard", new / "params.yaml") as run:
        log_note(run)
    client = client_of(new)
    for run in runs_of(client, "stage"):
        elsewhere = way == "copied without artifacts" and run.data.tags["stage"] == "base"
        assert run.info.artifact_uri.startswith((old if elsewhere else new).as_uri())
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.md"]
    assert old.exists() == (way != "moved")
    if old.exists():
        assert len(list((old / "mlartifacts").iterdir())) == 1


def test_runs_that_were_deleted_for_good_block_no_later_one(tmp_path):
    """The row names runs that are gone; then the row itself is, while its runs stay."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    params = make_project(tmp_path)
    do("base", params)
    do("shard", params, upstream={"base": "digest of base"})
    client, store = client_of(tmp_path), SqlAlchemyStore(f"sqlite:///{tmp_path}/mlflow.db", "./mlruns")
    base, shard = runs_of(client, "stage")
    store._hard_delete_run(base.info.run_id)
    do("base", params)
    store._hard_delete_run(runs_of(client, "pipeline")[0].info.run_id)
    client.update_run(shard.info.run_id, status="RUNNING")  # its process is gone, and so is its row
    do("shard", params, upstream={"base": "digest of base"})
    assert [row.data.tags["stage.shard"] for row in runs_of(client, "pipeline")] == ["executed"]
    assert not Spool.all(tmp_path)


def revision_of(file):
    with closing(sqlite3.connect(file)) as opened:
        return opened.execute("select version_num from alembic_version").fetchone()[0]


def set_revision(file, revision):
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute("update alembic_version set version_num = ?", (revision,))


def test_a_store_with_all_tables_in_an_older_form_is_upgraded_beside_its_place(tmp_path, monkeypatch):
    """MLflow itself would refuse it and ask for `mlflow db upgrade`. Here a migration that only changes columns."""
    make_project(tmp_path)
    file, opened = tmp_path / "mlflow.db", []
    newest = revision_of(file)
    set_revision(file, "older")

    def migrate(engine):
        opened.append(Path(engine.url.database))
        set_revision(opened[-1], newest)

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", migrate)
    database.make_whole(file)
    assert revision_of(file) == newest
    assert revision_of(file.with_name("mlflow.db.before-upgrade")) == "older"
    assert file not in opened
    database.make_whole(file)
    assert len(opened) == 1


def test_a_store_of_a_newer_mlflow_stays_as_it_is(tmp_path):
    make_project(tmp_path)
    file = tmp_path / "mlflow.db"
    set_revision(file, "ffffffffffff")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"^mlflow.db is of a newer MLflow than the one installed; `make install`$"):
        database.make_whole(file)
    assert file.read_bytes() == before
