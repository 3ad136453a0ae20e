"""Where every output came from: `python -m pipeline_lib.lineage show | sync | check`.

show   each stage with its state in this configuration, the digest of its output and the MLflow run that made it
sync   send what was spooled while the tracking server was away, and complete this configuration's row with what came
       from DVC's caches; may be run as often as one likes
check  every output folder against its manifest: exit code 1 and the list if a file is missing, changed or foreign
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib import artifacts, config, tracking
from pipeline_lib.errors import UserError
from pipeline_lib.runtime import run_stage

COMMANDS = ("show", "sync", "check")
MODELS = ("base", "refined")


def output_folders(params_file: Path) -> dict[str, Path]:
    """The output folder of each stage, in the order of the pipeline, relative to the current folder."""
    paths = config.load(params_file, "paths")
    folders = {"base": paths.base, "shard": paths.shards, "cache_teacher": paths.teacher, "refine": paths.refined}
    folders |= {f"evaluate@{model}": paths.eval / model for model in MODELS} | {"report": paths.report}
    return {stage: params_file.parent / folder for stage, folder in folders.items()}


def output_digests(params_file: Path) -> dict[str, str]:
    """The digest of each output that is there, by stage."""
    there = {s: f for s, f in output_folders(params_file).items() if (f / artifacts.MANIFEST).is_file()}
    return {stage: artifacts.read_manifest(folder)["digest"] for stage, folder in there.items()}


def show(params_file: Path) -> str:
    """The table of `show`."""
    digests = output_digests(params_file)
    store, reason = _open_store(params_file)
    row = store.row_of(tracking.describe("lineage", params_file, {})) if store else None
    lines = [("stage", "state", "digest", "MLflow run")]
    for stage in output_folders(params_file):
        tag, made = f"stage.{tracking.safe_name(stage)}", digests.get(stage, "")
        state, run_id = (row.tags.get(name, "") for name in (tag, f"{tag}.run_id")) if row else ("", "")
        if store and made and not run_id and (producer := store.producer(tracking.safe_name(stage), made)):
            run_id = producer.run_id
        lines.append((stage, state or ("there" if made else "not made"), made[:12], run_id or "unknown"))
    where = tracking.store_name(tracking.project_root(params_file))
    head = f"row {row.name} in {where}" if row else f"no row of this configuration in {where}{reason}"
    return "\n".join([head, *_columns(lines)])


def sync(params_file: Path) -> str:
    """Send the spools and complete the row; returns what was done.

    Raises:
        UserError: The store does not answer, or something could not be sent.
    """
    store, reason = _open_store(params_file, create=True)
    if store is None:
        raise UserError(f"nothing sent{reason}; start the server or see to MLFLOW_TRACKING_URI, then run sync again")
    said = [_send(spool, store) for spool in tracking.Spool.all(store.root)]
    return "\n".join([*said, _complete(params_file, store)])


def check(params_file: Path) -> list[str]:
    """What differs between the output folders and their manifests, one line each (empty: all is well)."""
    folders = [*output_folders(params_file).values(), params_file.parent / config.load(params_file, "paths").pixels]
    return [problem for folder in folders if folder.exists() for problem in _verify(folder)]


def _verify(folder: Path) -> list[str]:
    try:
        return artifacts.verify(folder)
    except UserError as error:  # no manifest, or one that was edited
        return [str(error)]


def _open_store(params_file: Path, *, create: bool = False) -> tuple[tracking.Store | None, str]:
    """The store, or None and why; a local store that is not there yet is only made where `create` says so."""
    settings, root = config.load(params_file, "tracking"), tracking.project_root(params_file)
    tracking.prepare_environment("best_effort")
    uri = tracking.store_uri(root)
    if not create and uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None, " (there is no store yet)"
    try:
        return tracking.Store(root, settings.experiment, strict=False), ""
    except UserError:
        raise
    except Exception as error:
        return None, f" ({tracking.reason(error)})"


def _send(spool: tracking.Spool, store: tracking.Store) -> str:
    name = f"{spool.path.parent.name}/{spool.path.name}"
    try:
        return f"{name}: {'sent' if tracking.deliver(spool, store) else 'its stage is still running'}"
    except Exception as error:
        raise UserError(f"{name}: not sent ({tracking.reason(error)}); run sync again") from None


def _complete(params_file: Path, store: tracking.Store) -> str:
    """Mark on this configuration's row what DVC says is up to date and no run of the row made."""
    stale = _stale_stages(params_file)
    if stale is None:
        return "row left as it is: DVC does not answer here, so it is not known which outputs belong to params.yaml"
    described = tracking.describe("lineage", params_file, {})
    if stale and store.row_of(described) is None:
        return f"no row of this configuration: `dvc repro` has yet to run {', '.join(sorted(stale))}"
    outputs = {tracking.safe_name(s): d for s, d in output_digests(params_file).items() if s not in stale}
    row = store.fill(described, outputs)
    if row is None:
        return "no row of this configuration: no run in this store made one of its outputs"
    open_stages = [s for s in output_folders(params_file) if f"stage.{tracking.safe_name(s)}" not in row.tags]
    return f"row {row.name}: {'complete' if not open_stages else 'without ' + ', '.join(open_stages)}"


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


def main(params_file: Path = Path("params.yaml"), command: str = "show") -> None:
    """Run one of the commands and print what it says.

    Raises:
        UserError: `sync` could not send, or `check` found a difference.
    """
    if command == "check":
        problems = check(params_file)
        if problems:
            raise UserError("\n".join([f"{len(problems)} differences, run `dvc repro`", *problems]))
        print(f"{len(output_digests(params_file))} outputs agree with their manifests")
        return
    print(show(params_file) if command == "show" else sync(params_file))


if __name__ == "__main__":
    run_stage(main, __doc__, choice=("command", COMMANDS))
