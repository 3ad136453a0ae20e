"""MLflow's pages on this project's store: the addresses of its views, and MLflow's server where it needs one.

MLflow itself would make or upgrade the store where it lies; here it is whole before MLflow's server opens it. One
process serves one person: of MLflow's four, and of eight more for jobs that nobody gives, a busy machine replaces the
servers before they have started, for ever.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline_lib.core import config
from pipeline_lib.tracking import place, views
from pipeline_lib.tracking.client import Client, prepare_environment
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.text import public


def serve(params_file: Path, port: int) -> None:
    """Print the addresses of the saved views, and become MLflow's server where the store is a database.

    Raises:
        UserError: The store is broken.
        MlflowException: It cannot be reached.
    """
    root = place.project_root(params_file)
    prepare_environment("best_effort")
    client = Client(root, config.load(params_file, TrackingSettings).experiment)
    client.refresh_views()
    uri, is_server = place.store_uri(root), place.artifact_location(root) is None
    server = public(uri.rstrip("/")) if is_server else f"http://127.0.0.1:{port}"
    print(f"Configurations:  {views.address(server, client.experiment_id, 'configurations')}")
    print(f"Training curves: {views.address(server, client.experiment_id, 'curves', charts=True)}", flush=True)
    if not is_server:
        print("MLflow's server takes half a minute to start; Ctrl-C ends it.", flush=True)
        os.chdir(root)
        os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        options = ["--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "ui", *options]
        os.execv(sys.executable, command)  # noqa: S606 - no shell
