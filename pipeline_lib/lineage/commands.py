"""Where every output came from: `python -m pipeline_lib.lineage show | sync | check`.

show   each stage with its state in this configuration, the digest of its output and the MLflow run that made it;
       with --rev of a git revision or DVC experiment, read from there instead of from the workspace
sync   send what was spooled while the tracking server was away, and complete this configuration's row with what came
       from DVC's caches; with --all-exps the rows of all DVC experiments too; safe to run again
check  every output folder against its manifest: exit code 1 and the list if a file is missing, changed or unexpected
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.lineage import revisions
from pipeline_lib.tracking.settings import TrackingSettings


@dataclass(frozen=True)
class Snapshot:
    """A configuration with the manifests of its outputs: the workspace, or a copy of what a revision had."""

    params_file: Path
    origin: Mapping[str, str] | None = None  # tags of the revision; None: the workspace

    def describe(self) -> tracking.Op:
        """How a run of this configuration would begin."""
        return tracking.describe("lineage", self.params_file, {}, origin=self.origin)

    def digests(self) -> dict[str, str]:
        """The digest of each output that is there, by the stage's name in MLflow."""
        return {tracking.safe_name(stage): digest for stage, digest in output_digests(self.params_file).items()}

    def headlines(self) -> dict[str, float | str]:
        """The report's few numbers, from its file beside the folder; {} without one."""
        file = metrics_file(self.params_file)
        return artifacts.read_json(file) if file.is_file() else {}


def output_folders(params_file: Path) -> dict[str, Path]:
    """The output folder of each stage, in the order of the pipeline, relative to the current folder."""
    folders = config.load(params_file, Paths).folders()
    return {stage: params_file.parent / folder for stage, folder in folders.items()}


def metrics_file(params_file: Path) -> Path:
    """The report's few numbers, which DVC compares."""
    return params_file.parent / config.load(params_file, Paths).report_numbers


def output_digests(params_file: Path) -> dict[str, str]:
    """The digest of each output that is there, by stage."""
    there = {s: f for s, f in output_folders(params_file).items() if (f / artifacts.MANIFEST).is_file()}
    return artifacts.digests(there)


def show(params_file: Path, revision: str | None = None) -> str:
    """The table of `show`, of the workspace or of a git revision or DVC experiment.

    Raises:
        UserError: There is no such revision.
    """
    store, reason = _open_store(params_file)
    where = tracking.store_name(tracking.project_root(params_file))
    with _snapshot(params_file, revision) as snapshot:
        row = store.row_of(snapshot.describe()) if store else None
        lines = [("stage", "state", "digest", "MLflow run"), *_states(snapshot, store, row)]
    head = f"row {row.name} in {where}" if row else f"no row of this configuration in {where}{reason}"
    return "\n".join([head, *_columns(lines)])


def _states(snapshot: Snapshot, store: tracking.Store | None, row: tracking.Record | None) -> Iterator[tuple[str, ...]]:
    """Name, state, digest and run of every stage."""
    digests = output_digests(snapshot.params_file)
    for stage in output_folders(snapshot.params_file):
        name, made = tracking.safe_name(stage), digests.get(stage, "")
        tags = row.tags if row else {}
        state, run_id = tags.get(f"stage.{name}", ""), tags.get(f"stage.{name}.run_id", "")
        if made and tags.get(f"stage.{name}.digest") != made:  # what lies there is not the row's own
            if state in ("", *tracking.DONE):
                state, run_id = "there", ""
            else:
                made = ""  # its own failed, or is on its way
        if store and made and run_id in ("", "unknown") and (producer := store.producer(name, made)):
            run_id = producer.run_id
        yield stage, state or "not made", made[:12], run_id or "unknown"


def sync(params_file: Path, *, all_experiments: bool = False) -> str:
    """Send the spools and complete the row, and those of all DVC experiments; returns what was done.

    Raises:
        UserError: The store does not answer, or something could not be sent.
    """
    store, reason = _open_store(params_file, create=True)
    if store is None:
        raise UserError(f"nothing sent{reason}; start the server or see to MLFLOW_TRACKING_URI, then run sync again")
    sent = [_send(spool, store) for spool in tracking.Spool.all(store.root)]
    said = [line for line, _ in sent]
    said.append(_complete(params_file, store))
    for name in revisions.experiments(params_file.parent) if all_experiments else ():
        with _snapshot(params_file, name) as snapshot:
            said.append(f"{name}: {_fill(snapshot, store)}")
    if not all(arrived for _, arrived in sent):
        raise UserError("\n".join(["not everything could be sent; run sync again", *said]))
    return "\n".join(said)


def check(params_file: Path) -> list[str]:
    """What differs between the output folders and their manifests, one line each (empty: all is well)."""
    folders = list(output_folders(params_file).values())
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


def _open_store(params_file: Path, *, create: bool = False) -> tuple[tracking.Store | None, str]:
    """The store, or None and why; a local store that is not there yet is only made where `create` says so."""
    settings, root = config.load(params_file, TrackingSettings), tracking.project_root(params_file)
    tracking.prepare_environment("best_effort")
    uri = tracking.store_uri(root)
    if not create and uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///").split("?")[0]).exists():
        return None, " (there is no store yet)"
    try:
        return tracking.Store(root, settings.experiment, strict=False, create=create), ""
    except UserError:
        raise
    except Exception as error:
        return None, f" ({tracking.reason(error)})"


def _send(spool: tracking.Spool, store: tracking.Store) -> tuple[str, bool]:
    """What became of a spool, and whether that is well; one that cannot be sent does not hold up the others."""
    name = f"{spool.path.parent.name}/{spool.path.name}"
    try:
        return f"{name}: {'sent' if tracking.deliver(spool, store) else 'its stage is still running'}", True
    except Exception as error:
        return f"{name}: not sent ({tracking.reason(error)})", False


def _complete(params_file: Path, store: tracking.Store) -> str:
    """Mark on this configuration's row what DVC says is up to date and no run of the row made."""
    stale = _stale_stages(params_file)
    if stale is None:
        return "row left as it is: DVC does not answer here, so it is not known which outputs belong to params.yaml"
    snapshot = Snapshot(params_file)
    if stale and store.row_of(snapshot.describe()) is None:
        return f"no row of this configuration: `dvc repro` has yet to run {', '.join(sorted(stale))}"
    return _fill(snapshot, store, without={tracking.safe_name(stage) for stage in stale})


def _fill(snapshot: Snapshot, store: tracking.Store, *, without: Collection[str] = ()) -> str:
    outputs = {stage: digest for stage, digest in snapshot.digests().items() if stage not in without}
    headlines = snapshot.headlines() if "report" in outputs else {}
    row = store.fill(snapshot.describe(), outputs, headlines)
    if row is None:
        return "no row of this configuration: no run in this store made one of its outputs"
    stages = map(tracking.safe_name, output_folders(snapshot.params_file))
    missing = [stage for stage in stages if f"stage.{stage}" not in row.tags]
    foreign = [stage for stage in outputs if row.tags.get(f"stage.{stage}.run_id") == "unknown"]
    said = [f"without {', '.join(missing)}" if missing else "complete"]
    said += [f"made by runs that are not in this store: {', '.join(foreign)}"] if foreign else []
    return f"row {row.name}: {'; '.join(said)}"


def _stale_stages(params_file: Path) -> set[str] | None:
    """The stages whose outputs do not belong to the parameters, code and data as they are now; None: DVC cannot say."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=params_file.parent, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        status: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return None
    return set(status)


def _columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


# Revisions ------------------------------------------------------------------------------------------------------------


@contextmanager
def _snapshot(params_file: Path, revision: str | None) -> Iterator[Snapshot]:
    """The workspace, or a temporary copy of a revision's parameters, code and manifests."""
    if revision is None:
        yield Snapshot(params_file)
        return
    project = params_file.parent
    commit, baseline = revisions.resolve(project, revision)
    named = {"dvc.exp_name": revision, "dvc.exp_baseline": baseline} if baseline else {}
    origin = {**named, "mlflow.source.git.commit": commit, "git.dirty": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / params_file.name
        _copy(revisions.open_revision(project, commit), copy)
        if not copy.is_file():
            raise UserError(f"{params_file.name}: not in commit {commit[:10]}; name a revision of this project")
        yield Snapshot(copy, origin)


def _copy(files: Any, params_file: Path) -> None:
    """What decides a configuration and names its row, the manifests of its outputs, and the report's numbers."""
    folder = params_file.parent
    revisions.copy(files, (params_file.name, "dvc.yaml", "dvc.lock"), folder)
    if params_file.is_file():
        outputs = [path / artifacts.MANIFEST for path in output_folders(params_file).values()]
        made = [path.relative_to(folder).as_posix() for path in (*outputs, metrics_file(params_file))]
        revisions.copy(files, [*tracking.code_deps(folder / "dvc.yaml"), *made], folder)


# Command line ---------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.lineage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", metavar="show | sync | check")
    said = {
        "show": "each stage with its state, the digest of its output and the MLflow run that made it",
        "sync": "send what was spooled and complete the row of this configuration; safe to run again",
        "check": "every output folder against its manifest; exit code 1 where a file is missing, changed or unexpected",
    }
    show, sync, _ = (commands.add_parser(name, help=text, description=text) for name, text in said.items())
    show.add_argument("--rev", help="git revision or DVC experiment")
    sync.add_argument("--all-exps", action="store_true", help="rows of DVC experiments too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands (`show` where none is named) and print what it says.

    Raises:
        UserError: `sync` could not send, `check` found a difference, or there is no such revision.
    """
    options = parse(arguments)
    if options.command == "check":
        if problems := check(options.params):
            raise UserError("\n".join([f"{len(problems)} differences, run `dvc repro`", *problems]))
        print(f"{len(output_digests(options.params))} outputs agree with their manifests")
        return
    try:
        if options.command == "sync":
            print(sync(options.params, all_experiments=options.all_exps))
        else:
            print(show(options.params, getattr(options, "rev", None)))
    except UserError:
        raise
    except tracking.store_errors() as error:  # it answered at first
        where = tracking.store_name(tracking.project_root(options.params))
        raise UserError(f"MLflow at {where} failed ({tracking.reason(error)}); run the command again") from None
