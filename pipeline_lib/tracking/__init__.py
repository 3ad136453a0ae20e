"""MLflow, behind one context manager: `stage_run` gives a `Run` whose methods never stand in the way of the work.

Every configuration is one parent run (the *row*), every execution of a stage one child. What a stage logs goes to a
write-ahead file (`spool`); a process of its own (`sender`) brings it to the store in batches (`store`), and the file
goes when everything has arrived. So mlflow is imported beside the stage, not in it, and a lost server costs nothing:
the file stays, and `lineage sync` sends it later. Points are told apart by (run, name, step), so that neither a resumed
run nor a second delivery doubles one.

Modes (`tracking.mode`): `disabled` is a null object and never imports mlflow; `required` waits for the store before the
work and after it, and raises when it fails (in the loop: after the next checkpoint, so that nothing is lost);
`best_effort` says once that it spools and goes on. The store is
$MLFLOW_TRACKING_URI, else `mlflow.db` in the project's root: $DVC_ROOT, which is the main repository also in the
temporary folders of DVC's queue.

A stage that DVC took from its cache has no process and no new run: the next stage that does run marks it `reused` on
the row, with the run that made its output (found by the output's digest) and that run's headline numbers.
"""

from pipeline_lib.tracking.client import Record, prepare_environment, reason, store_errors
from pipeline_lib.tracking.describe import code_deps, describe, project_root, safe_name, store_name, store_uri
from pipeline_lib.tracking.rows import DONE
from pipeline_lib.tracking.run import Run, stage_run
from pipeline_lib.tracking.sender import deliver
from pipeline_lib.tracking.spool import Op, Spool
from pipeline_lib.tracking.store import Store

__all__ = [
    "DONE",
    "Op",
    "Record",
    "Run",
    "Spool",
    "Store",
    "code_deps",
    "deliver",
    "describe",
    "prepare_environment",
    "project_root",
    "reason",
    "safe_name",
    "stage_run",
    "store_errors",
    "store_name",
    "store_uri",
]
