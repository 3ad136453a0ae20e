"""Where every output came from, across runs, commits and experiments: `python -m pipeline_lib.lineage`."""
