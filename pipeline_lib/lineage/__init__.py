"""Where every output came from, across runs, commits and experiments: `python -m pipeline_lib.lineage`.

commands    `show`, `sync` and `check`
ui          MLflow's pages on the project's store
revisions   versions of the project: the workspace, commits and experiments, with their files
"""
