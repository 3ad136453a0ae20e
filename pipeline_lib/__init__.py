"""The library under the stages: a package a stage, imports only downwards (the contract stands in pyproject.toml).

OpenMP's idle threads sleep instead of spinning, unless the user says otherwise. Spinning gains a little on an idle
machine and costs a multiple on a busy one (two experiments at once: five times the step here). It is read when torch is
imported, so it is set before.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
