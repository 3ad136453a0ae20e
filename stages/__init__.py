"""One script per stage of dvc.yaml: load typed config, read artifacts, call the library, write artifacts, log."""
