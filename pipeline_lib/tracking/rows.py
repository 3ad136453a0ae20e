"""Rows: one MLflow run a configuration, parent of its stages' runs, with their states and headline numbers as its own.

A row has for each stage the tags `stage.<name>` (executed, reused, running, failed or killed), `.run_id` and `.digest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipeline_lib.tracking import views
from pipeline_lib.tracking.client import Client, Record
from pipeline_lib.tracking.spool import Op, Spool, now

DONE = ("executed", "reused")
STATES = {"FINISHED": "executed", "FAILED": "failed", "KILLED": "killed"}


def row_of(client: Client, start: Op) -> Record | None:
    """Return the newest row of a configuration in this workspace; for a DVC experiment, the one with its name."""
    experiment = ("dvc.exp_name", "dvc.exp_baseline") if "dvc.exp_name" in start["tags"] else ()
    return _newest(client, start, "pipeline.config", *experiment)


def find_or_create(client: Client, start: Op) -> Record:
    """Return the newest row of the configuration, or a new one if that has an output of this stage already."""
    row = _newest(client, start, "pipeline.key")
    free = row and (row.tags.get(f"stage.{start['stage']}") not in DONE or is_superseded(client, row, start))
    return row if row and free else _create(client, start)


def _newest(client: Client, start: Op, *names: str) -> Record | None:
    tags = {"kind": "pipeline", "pipeline.workspace": client.workspace, **{n: start["tags"][n] for n in names}}
    return next(iter(client.find(tags)), None)


def _create(client: Client, start: Op) -> Record:
    tags = {
        "kind": "pipeline",
        "pipeline.workspace": client.workspace,
        "row.uid": start["uid"],
        "mlflow.source.name": "dvc.yaml",
        "mlflow.note.content": start["note"],
        **start["tags"],
    }
    return client.create(start["row"], start["time"], tags)


def is_superseded(client: Client, row: Record, start: Op) -> bool:
    """Return whether the row names a later run of the same stage, so that this one was delivered late."""
    later = row.tags.get(f"stage.{start['stage']}.run_id", "unknown")
    if later == "unknown":
        return False
    run = client.run(later)
    return run.began > start["time"] and run.tags.get("run.uid") != start["uid"]


def clear_error(client: Client, row: Record, stage: str) -> None:
    """Remove the row's error if `stage` left it, since that goes on, or its output is there after all."""
    if row.tags.get("error", "").startswith(f"{stage} "):
        client.mlflow.delete_tag(row.run_id, "error")


def end(client: Client, row_id: str, time: int) -> None:
    """End a row with the worst status among its stages: FAILED, else KILLED, else FINISHED."""
    row = client.run(row_id)
    states = {value for name, value in row.tags.items() if re.fullmatch(r"stage\.[^.]+", name)}
    status = next((status for status in ("FAILED", "KILLED") if STATES[status] in states), "FINISHED")
    if status != row.status:
        client.mlflow.set_terminated(row_id, status, time)


def forget(client: Client, run: Record) -> None:
    """Take a run that was deleted off its row, whose status then is that of its other stages."""
    row, tag = client.run(run.tags["mlflow.parentRunId"]), f"stage.{run.tags['stage']}"
    if not row.deleted and row.tags.get(f"{tag}.run_id") == run.run_id:
        for name in (tag, f"{tag}.run_id"):
            client.mlflow.delete_tag(row.run_id, name)
        end(client, row.run_id, now())


def add_columns(client: Client, metrics: Iterable[str]) -> None:
    """Give these metrics a column each in the experiment's view of rows."""
    tags = client.mlflow.get_experiment(client.experiment_id).tags
    for name, view in views.configurations(tags, metrics, now()).items():
        client.mlflow.set_experiment_tag(client.experiment_id, name, view)


def mark_reused(client: Client, row_id: str, stage: str, output: str) -> str:
    """Mark `stage` and, through the run that made its output, the stages before it as reused, but for executed ones.

    Headlines of the runs that made the outputs are promoted: copied to the row where it has none of that name.

    Returns:
        The id of the run that made the output; `unknown` where this store has none (it is in another, or in a spool).
    """
    row, tag = client.run(row_id), f"stage.{stage}"
    known = row.tags.get(f"{tag}.run_id", "unknown")
    if row.tags.get(tag) in DONE and row.tags.get(f"{tag}.digest") == output and known != "unknown":
        return known
    if _is_spooled(client, row, stage, output):
        return "unknown"
    producer = client.producer(stage, output)
    run_id = producer.run_id if producer else "unknown"
    if row.tags.get(tag) != "executed":
        client.log(row_id, tags={tag: "reused", f"{tag}.run_id": run_id, f"{tag}.digest": output})
    if producer is not None:
        found: dict[str, float | str] = {**producer.tags, **producer.metrics}
        _add_headlines(client, row, {name: found[name] for name in headlines_of(producer) if name in found})
        for before, digest in _upstream_of(producer).items():
            mark_reused(client, row_id, before, digest)
    return run_id


def _is_spooled(client: Client, row: Record, stage: str, output: str) -> bool:
    """Return whether a run of this row made the output, and is still to be sent."""
    for spool in Spool.all(client.root):
        start, key = spool.first(), row.tags["pipeline.key"]
        ours = start and start["stage"] == stage and start["tags"]["pipeline.key"] == key
        if ours and any(op["op"] == "output" and op["digest"] == output for op, _ in spool.read()):
            return True
    return False


def _add_headlines(
    client: Client, row: Record, values: Mapping[str, float | str], tags: Mapping[str, str] | None = None
) -> list[str]:
    """Log the headlines that the row lacks, with further `tags` if it lacks any; return the names of the numbers."""
    missing = {name: v for name, v in values.items() if name not in row.metrics and name not in row.tags}
    texts = {name: value for name, value in missing.items() if isinstance(value, str)}
    numbers = [name for name in missing if name not in texts]
    if missing:
        points = [[name, missing[name], None, now()] for name in numbers]
        client.log(row.run_id, points=points, tags={**texts, **(tags or {})})
    return numbers


def complete(
    client: Client, start: Op, outputs: Mapping[str, str], headlines: Mapping[str, float | str]
) -> Record | None:
    """Complete the row of a configuration whose outputs are all there, whether runs, DVC's caches or a pull made them.

    Args:
        client: The store.
        start: `describe.start_op` of any stage.
        outputs: Digest of the output's manifest, by stage.
        headlines: The numbers of the report's file, for a row whose report no run in this store made.

    Returns:
        The newest row of the configuration, or a new one; None where the store knows none of the outputs.
    """
    with client.locked():
        known = row_of(client, start)
        if known is None and not any(client.producer(stage, output) for stage, output in outputs.items()):
            return None
        row = known or _create(client, start)
        for stage, output in outputs.items():
            mark_reused(client, row.run_id, stage, output)
        client.log(row.run_id, tags={"dvc.lock": start["tags"].get("dvc.lock", "")})
        client.log_missing(row, start["params"])
        origin = {"headlines.from": "the report's file"}
        if added := _add_headlines(client, client.run(row.run_id), headlines, origin):
            add_columns(client, added)
        row = client.run(row.run_id)
        for stage in outputs:
            if row.tags.get(f"stage.{stage}") in DONE:
                clear_error(client, row, stage)
        if known is None or known.status != "RUNNING":
            end(client, row.run_id, now())
        _name_producers(client, outputs)
    return client.run(row.run_id)


def link_upstream(client: Client, row_id: str, run_id: str, upstream: Mapping[str, str]) -> None:
    """Name on a stage's run the digests that it read and the runs that made them, and mark those stages on its row."""
    tags = {}
    for stage, output in upstream.items():
        tags[f"upstream.{stage}.digest"] = output
        tags[f"upstream.{stage}.run_id"] = mark_reused(client, row_id, stage, output)
    client.log(run_id, tags=tags)


def _name_producers(client: Client, outputs: Mapping[str, str]) -> None:
    """Name the runs that made these outputs on the runs that read them before the store had the first."""
    for stage, output in outputs.items():
        waiting = {f"upstream.{stage}.run_id": "unknown", f"upstream.{stage}.digest": output}
        readers = client.find({"pipeline.workspace": client.workspace, **waiting}, limit=100)
        if readers and (found := client.producer(stage, output)):
            for reader in readers:
                client.log(reader.run_id, tags={f"upstream.{stage}.run_id": found.run_id})


def headlines_of(run: Record) -> list[str]:
    """List the names of a run's headlines, from its tags `headline.0`, `headline.1`, ..."""
    pages = sorted((tag for tag in run.tags if tag.startswith("headline.")), key=lambda tag: int(tag.split(".")[1]))
    return [name for page in pages for name in run.tags[page].splitlines()]


def _upstream_of(run: Record) -> dict[str, str]:
    found = (re.fullmatch(r"upstream\.(.+)\.digest", name) for name in run.tags)
    return {match[1]: run.tags[match[0]] for match in found if match}
