"""One script per stage of dvc.yaml: load typed config, read artifacts, call the library, write artifacts, log."""

import pipeline_lib  # noqa: F401  # before all that a stage imports
