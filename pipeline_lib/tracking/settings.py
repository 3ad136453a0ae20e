"""Section `tracking` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import section


@section("tracking")
class TrackingSettings:
    """What is logged to MLflow.

    The server's address (MLFLOW_TRACKING_URI) and credentials come from the environment, never from here; without an
    address everything goes to `mlflow.db` in the project's root.
    """

    mode: Literal["required", "best_effort", "disabled"]
    """What happens when MLflow cannot be reached. `required`: the stage fails. `best_effort`: the stage goes on, and
    what could not be sent is kept until `python -m pipeline_lib.lineage sync` sends it. `disabled`: nothing is logged.
    """

    experiment: str
    """The name of the MLflow experiment to which runs are logged. It is created if it does not exist."""

    system_metrics: bool
    """Whether the load of the machine (processor, memory, disk, network, GPU) is logged as well, every ten seconds."""
