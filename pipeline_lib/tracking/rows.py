"""Rows: one run per configuration, which stands for its stages and shows their states and headline numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline_lib.tracking import views
from pipeline_lib.tracking.client import Client, Record
from pipeline_lib.tracking.describe import now
from pipeline_lib.tracking.spool import Op, Spool

DONE = ("executed", "reused")
STATES = {"FINISHED": "executed", "FAILED": "failed", "KILLED": "killed"}


class Rows(Client):
    """The rows of a project."""

    def _close_row(self, row: Record, time: int) -> None:
        """End a row as the worst of its stages did."""
        states = {value for name, value in row.tags.items() if re.fullmatch(r"stage\.[^.]+", name)}
        status = next((status for status in ("FAILED", "KILLED") if STATES[status] in states), "FINISHED")
        if status != row.status:
            self.client.set_terminated(row.run_id, status, time)

    def _is_superseded(self, row: Record, op: Op) -> bool:
        """Whether a later run of the stage is in the row already: this one was delivered late."""
        later = row.tags.get(f"stage.{op['stage']}.run_id", "unknown")
        if later == "unknown":
            return False
        run = self.run(later)
        return run.began > op["time"] and run.tags.get("run.uid") != op["uid"]

    def _forget_error(self, row: Record, stage: str) -> None:
        """The stage that left the row's error goes on, or its output is there after all."""
        if row.tags.get("error", "").startswith(f"{stage} "):
            self.client.delete_tag(row.run_id, "error")

    def join(self, op: Op) -> Record:
        """The row that this stage belongs to: the newest of its configuration, or a new one if that has the stage."""
        newest = self._newest_row(op, "pipeline.key")
        free = newest and (newest.tags.get(f"stage.{op['stage']}") not in DONE or self._is_superseded(newest, op))
        return newest if newest and free else self._create_row(op)

    def row_of(self, op: Op) -> Record | None:
        """The newest row of this configuration in this workspace, under this name if it is a DVC experiment."""
        experiment = ("dvc.exp_name", "dvc.exp_baseline") if "dvc.exp_name" in op["tags"] else ()
        return self._newest_row(op, "pipeline.config", *experiment)

    def _newest_row(self, op: Op, *names: str) -> Record | None:
        tags = {"kind": "pipeline", "pipeline.workspace": self._workspace, **{n: op["tags"][n] for n in names}}
        return next(iter(self.find(tags)), None)

    def fill(self, op: Op, outputs: Mapping[str, str], headlines: Mapping[str, float | str]) -> Record | None:
        """Complete the row of a configuration whose outputs are all there, by whatever means they came.

        Args:
            op: `describe` of any stage.
            outputs: Digest of the output's manifest, by stage.
            headlines: What the report's own file says, for a row whose report no run of this store made.

        Returns:
            The newest row of the configuration, or a new one; None where the store knows none of the outputs.
        """
        with self._locked():
            known = self.row_of(op)
            if known is None and not any(self.producer(stage, output) for stage, output in outputs.items()):
                return None
            row = known or self._create_row(op)
            for stage, output in outputs.items():
                self.mark_reused(self.run(row.run_id), stage, output)
            self._log(row.run_id, tags={"dvc.lock": op["tags"].get("dvc.lock", "")})
            self._log_missing(row, op["params"])
            self._fill_headlines(self.run(row.run_id), headlines)
            filled = self.run(row.run_id)
            for stage in outputs:
                if filled.tags.get(f"stage.{stage}") in DONE:
                    self._forget_error(filled, stage)
            if known is None or known.status != "RUNNING":
                self._close_row(filled, now())
            self._name_unknown(outputs)
        return self.run(row.run_id)

    def _fill_headlines(self, row: Record, headlines: Mapping[str, float | str]) -> None:
        missing = {name: v for name, v in headlines.items() if name not in row.metrics and name not in row.tags}
        numbers = {name: value for name, value in missing.items() if not isinstance(value, str)}
        texts = {name: value for name, value in missing.items() if isinstance(value, str)}
        if missing:
            points = [[name, value, None, now()] for name, value in numbers.items()]
            self._log(row.run_id, points=points, tags={**texts, "headlines.from": "the report's file"})
            self._show(list(numbers))

    def mark_reused(self, row: Record, stage: str, output: str) -> str:
        """Mark `stage`, and what its output came from, as reused on the row, unless the row executed it.

        Returns:
            The run that made the output; `unknown` where the store has none (another store has, or it is in a spool).
        """
        tag = f"stage.{stage}"
        known = row.tags.get(f"{tag}.run_id", "unknown")
        if row.tags.get(tag) in DONE and row.tags.get(f"{tag}.digest") == output and known != "unknown":
            return known
        if self._is_waiting(row, stage, output):
            return "unknown"
        made_by = self.producer(stage, output)
        run_id = made_by.run_id if made_by else "unknown"
        if row.tags.get(tag) != "executed":
            self._log(row.run_id, tags={tag: "reused", f"{tag}.run_id": run_id, f"{tag}.digest": output})
        if made_by is not None:
            self._promote(made_by, row)
            for further, digest in upstream_of(made_by).items():
                self.mark_reused(self.run(row.run_id), further, digest)
        return run_id

    def _is_waiting(self, row: Record, stage: str, output: str) -> bool:
        """Whether the stage was executed for this row, and the run that says so is still to be sent."""
        for spool in Spool.all(self.root):
            first, key = spool.first(), row.tags["pipeline.key"]
            ours = first and first["stage"] == stage and first["tags"]["pipeline.key"] == key
            if ours and any(op["op"] == "output" and op["digest"] == output for op, _ in spool.read()):
                return True
        return False

    def _create_row(self, op: Op) -> Record:
        tags = {
            "kind": "pipeline",
            "pipeline.workspace": self._workspace,
            "row.uid": op["uid"],
            "mlflow.source.name": "dvc.yaml",
            "mlflow.note.content": op["note"],
            **op["tags"],
        }
        return self._record(self.client.create_run(self.experiment_id, op["time"], tags, op["row"]))

    def _promote(self, made_by: Record, row: Record) -> None:
        """Copy a reused run's headlines to the row, where they are missing."""
        names = [name for name in headlines_of(made_by) if name not in row.metrics and name not in row.tags]
        points = [[name, made_by.metrics[name], None, now()] for name in names if name in made_by.metrics]
        texts = {name: made_by.tags[name] for name in names if name in made_by.tags}
        self._log(row.run_id, points=points, tags=texts)

    def _show(self, metrics: Sequence[str]) -> None:
        """Give these metrics of rows a column each in the experiment's view."""
        known = self.client.get_experiment(self.experiment_id).tags
        for name, view in views.configurations(known, metrics, now()).items():
            self.client.set_experiment_tag(self.experiment_id, name, view)

    def _link_upstream(self, row: Record, run_id: str, op: Op) -> None:
        tags = {}
        for stage, output in op["upstream"].items():
            tags[f"upstream.{stage}.digest"] = output
            tags[f"upstream.{stage}.run_id"] = self.mark_reused(self.run(row.run_id), stage, output)
        self._log(run_id, tags=tags)

    def _name_unknown(self, outputs: Mapping[str, str]) -> None:
        """Fill in the producers of these outputs that runs could not know, because they were delivered later."""
        for stage, output in outputs.items():
            waiting = {f"upstream.{stage}.run_id": "unknown", f"upstream.{stage}.digest": output}
            children = self.find({"pipeline.workspace": self._workspace, **waiting}, limit=100)
            if children and (found := self.producer(stage, output)):
                for child in children:
                    self._log(child.run_id, tags={f"upstream.{stage}.run_id": found.run_id})


def headlines_of(run: Record) -> list[str]:
    """The names of a run's headline numbers, which stand in as many tags as they need."""
    pages = sorted((tag for tag in run.tags if tag.startswith("headline.")), key=lambda tag: int(tag.split(".")[1]))
    return [name for page in pages for name in run.tags[page].splitlines()]


def upstream_of(run: Record) -> dict[str, str]:
    """The digests that a stage's run read, by stage."""
    found = (re.fullmatch(r"upstream\.(.+)\.digest", name) for name in run.tags)
    return {match[1]: run.tags[match[0]] for match in found if match}
