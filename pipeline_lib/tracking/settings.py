"""Section `tracking` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pipeline_lib.core.schema import section


@section("tracking")
class TrackingSettings:
    """MLflow. The server's address and credentials come from the environment, never from here."""

    mode: Literal["required", "best_effort", "disabled"]
    """Required: a stage fails if the server is lost; best_effort: what the server does not take is kept and sent later;
    disabled: nothing is logged.
    """

    experiment: str
    """Name of the MLflow experiment."""

    system_metrics: bool
    """True: the machine's load (CPU, memory, GPU) as well."""
