"""MLflow, behind one context manager: `stage_run` gives a `Run` whose methods never stand in the way of the work.

Modes (`tracking.mode`): `disabled` hands out a null object and never imports mlflow; `required` raises when the store
fails; `best_effort` spools what the store does not take and goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib import config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Run:
    """What a stage logs to. This base class is the null object: every method does nothing."""

    info: str = "tracking disabled"  # one line: where it went
    run_id: str = ""  # what `resume` takes; put it into a checkpoint

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add points to the curves of this run; buffered, sent in batches by a thread of its own."""

    def headline(self, values: Mapping[str, float]) -> None:
        """Log final numbers here and on the configuration's row."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of the file `path` below `folder` of the run's artifacts (the file may vanish afterwards)."""

    def log_text(self, text: str, name: str) -> None:
        """Keep `text` as artifact `name`, such as `report.md` or `tables/recall.md`."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a matplotlib figure as artifact `name`, such as `plots/loss.png`."""

    def dataset(self, name: str, digest: str, context: str) -> None:
        """Name a data set that this run reads (an MLflow input); `context` says what for: `refine`, `val`, ..."""

    def output(self, digest: str) -> None:
        """The digest of the output folder's manifest: the name under which later stages find this run."""

    def flush(self) -> None:
        """Make all that was logged durable (on disk, or with `required` in the store); call it before a checkpoint."""

    def resume(self, run_id: str) -> None:
        """Go on with the run of a checkpoint (its `run_id`) instead of this new one; call it before logging points."""


@contextmanager
def stage_run(stage: str, params_file: Path, *, upstream: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Track one execution of a stage.

    Args:
        stage: The stage's name as in dvc.yaml; one item of a matrix as `evaluate@refined`.
        params_file: params.yaml; its dotted keys become the run's parameters.
        upstream: For each stage whose output this one reads, the `digest` of that output's manifest
            (`{"base": ..., "evaluate@refined": ...}`).

    Raises:
        UserError: `tracking.mode` is `required` and the store fails.
    """
    settings = config.load(params_file, "tracking")
    if settings.mode == "disabled" or os.environ.get("RANK", "0") != "0":
        yield Run()
        return
    yield Run()
