"""The commands of the lineage: `show`, `sync` and `check` of a project's outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.lineage import revisions
from pipeline_lib.lineage.revisions import Snapshot, open_snapshot
from pipeline_lib.tracking import rows
from pipeline_lib.tracking.client import Client, Record, prepare_environment
from pipeline_lib.tracking.delivery import deliver
from pipeline_lib.tracking.place import project_root, store_file, store_name
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.tracking.store import Store
from pipeline_lib.tracking.text import reason, safe_name


def show(params_file: Path, revision: str | None = None) -> str:
    """Return the table of `show`, of the workspace or of a git revision or DVC experiment.

    Raises:
        UserError: There is no such revision.
    """
    where = store_name(project_root(params_file))
    client, missing = _open_client(params_file)
    with open_snapshot(params_file, revision) as snapshot:
        row = rows.row_of(client, snapshot.start_op()) if client else None
        lines = [("stage", "state", "digest", "MLflow run"), *_states(snapshot, client, row)]
    head = f"row {row.name} in {where}" if row else f"no row of this configuration in {where}{missing}"
    return "\n".join([head, *_columns(lines)])


def _states(snapshot: Snapshot, client: Client | None, row: Record | None) -> Iterator[tuple[str, ...]]:
    """Yield name, state, digest and run of every stage."""
    digests, tags = snapshot.digests(), row.tags if row else {}
    for stage in snapshot.folders():
        name = safe_name(stage)
        made = digests.get(name, "")
        state, run_id = tags.get(f"stage.{name}", ""), tags.get(f"stage.{name}.run_id", "")
        if made and tags.get(f"stage.{name}.digest") != made:  # the output that is there is not the row's own
            if state in ("", *rows.DONE):
                state, run_id = "there", ""
            else:
                made = ""  # the row's own failed, or is being made
        if client and made and run_id in ("", "unknown") and (producer := client.producer(name, made)):
            run_id = producer.run_id
        yield stage, state or "not made", made[:12], run_id or "unknown"


def _columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def sync(params_file: Path, *, all_experiments: bool = False) -> str:
    """Send the spools and complete the row, and those of all DVC experiments; return what was done.

    Raises:
        UserError: The store does not answer, or something could not be sent.
    """
    client, missing = _open_client(params_file, create=True)
    if client is None:
        raise UserError(f"nothing sent{missing}; start the server or see to MLFLOW_TRACKING_URI, then run sync again")
    sent = [_send(spool, client) for spool in Spool.all(client.root)]
    lines = [line for line, _ in sent]
    lines.append(_complete_current(params_file, client))
    experiments = revisions.experiments(params_file.parent) if all_experiments else ()
    lines += [f"{name}: {_complete_experiment(params_file, name, client)}" for name in experiments]
    if not all(arrived for _, arrived in sent):
        raise UserError("\n".join(["not everything could be sent; run sync again", *lines]))
    return "\n".join(lines)


def _send(spool: Spool, client: Client) -> tuple[str, bool]:
    """Send one spool; return what became of it, and whether that is well. A failure does not hold up the others."""
    name = f"{spool.path.parent.name}/{spool.path.name}"
    try:
        sent = deliver(spool, Store(client, strict=False))
        return f"{name}: {'sent' if sent else 'its stage is still running'}", True
    except Exception as error:
        return f"{name}: not sent ({reason(error)})", False


def _complete_experiment(params_file: Path, name: str, client: Client) -> str:
    """Complete the row of an experiment; one that cannot be read does not hold up the others."""
    try:
        with open_snapshot(params_file, name) as snapshot:
            return _complete(snapshot, client)
    except UserError as error:
        return f"left as it is ({error})"


def _complete_current(params_file: Path, client: Client) -> str:
    """Complete the row of the workspace with the outputs that DVC calls up to date."""
    stale = _stale_stages(params_file)
    if stale is None:
        return "row left as it is: DVC does not answer here, so it is not known which outputs belong to params.yaml"
    snapshot = Snapshot(params_file)
    if stale and rows.row_of(client, snapshot.start_op()) is None:
        return f"no row of this configuration: `dvc repro` has yet to run {', '.join(sorted(stale))}"
    return _complete(snapshot, client, without={safe_name(stage) for stage in stale})


def _complete(snapshot: Snapshot, client: Client, *, without: Collection[str] = ()) -> str:
    """Complete the row of a snapshot, but for some stages; return what it has then."""
    outputs = {stage: digest for stage, digest in snapshot.digests().items() if stage not in without}
    headlines = snapshot.headlines() if "report" in outputs else {}
    row = rows.complete(client, snapshot.start_op(), outputs, headlines)
    if row is None:
        return "no row of this configuration: no run in this store made one of its outputs"
    missing = [stage for stage in map(safe_name, snapshot.folders()) if f"stage.{stage}" not in row.tags]
    foreign = [stage for stage in outputs if row.tags.get(f"stage.{stage}.run_id") == "unknown"]
    notes = [f"without {', '.join(missing)}" if missing else "complete"]
    notes += [f"made by runs that are not in this store: {', '.join(foreign)}"] if foreign else []
    return f"row {row.name}: {'; '.join(notes)}"


def _stale_stages(params_file: Path) -> set[str] | None:
    """Return the stages that `dvc status` lists, as changed in parameters, code or data; None where it fails."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=params_file.parent, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        return set(json.loads(done.stdout))
    except json.JSONDecodeError:
        return None


def check_outputs(params_file: Path) -> list[str]:
    """Return what differs between the output folders and their manifests, one line each (empty: nothing)."""
    folders = list(Snapshot(params_file).folders().values())
    pixels = params_file.parent / config.load(params_file, Paths).pixels
    folders += [pixels] if pixels.exists() else []  # a cache that may be absent
    return [problem for folder in folders for problem in _verify(folder)]


def _verify(folder: Path) -> list[str]:
    problems: list[str] = []
    try:
        problems += artifacts.verify(folder)
        manifest = artifacts.read_manifest(folder)
        for name in manifest["parts"] if manifest["stage"] == shards.STAGE else ():
            problems += shards.verify_in_place(shards.read_part(folder / name))
    except UserError as error:  # not there, no manifest, or one that was edited
        problems.append(str(error))
    return problems


def _open_client(params_file: Path, *, create: bool = False) -> tuple[Client | None, str]:
    """Open the store; return None and why where there is none. Only `create` makes a local store or an experiment."""
    settings, root = config.load(params_file, TrackingSettings), project_root(params_file)
    prepare_environment("best_effort")
    file = store_file(root)
    if not create and file and not file.exists():
        return None, " (there is no store yet)"
    try:
        return Client(root, settings.experiment, create=create), ""
    except UserError as error:  # what is here can be shown without the store
        if create:
            raise
        return None, f" ({error})"
    except Exception as error:
        return None, f" ({reason(error)})"
