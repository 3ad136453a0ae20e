"""MLflow, behind one context manager: `stage_run` gives a `Run` whose methods never stand in the way of the work.

Every configuration is one parent run (the *row*), every execution of a stage one child. What a stage logs goes to a
write-ahead file (`spool`); a process of its own (`sender`, `delivery`) brings it to the store in batches, and the file
goes when everything has arrived. So mlflow is imported beside the stage, not in it, and a lost server costs nothing:
the file stays, and `lineage sync` sends it later. `required` waits for the store before the work and after it; in the
loop it raises only after the next checkpoint, so that nothing is lost.

A stage that DVC took from its cache has no process and no new run: the next stage that does run marks it `reused` on
the row, with the run that made its output (found by the output's digest) and that run's headline numbers.
"""

from pipeline_lib.tracking.run import Run, stage_run
from pipeline_lib.tracking.times import time_taken

__all__ = ["Run", "stage_run", "time_taken"]
