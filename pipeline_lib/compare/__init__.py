"""Comparison across runs: which configuration is best, by how much, and how sure that is.

    python -m pipeline_lib.compare                          this folder and the DVC experiments of its commit
    python -m pipeline_lib.compare hycd=../a rafa=../b      evaluated folders, with or without names
    python -m pipeline_lib.compare --revs main v1 quick-1   git revisions or experiments, of any commit
    python -m pipeline_lib.compare queue --seeds 0..2       run every ablation on top of params.yaml

Configurations that differ in `refine.seed` alone are one row: mean ± spread over seeds, and an interval over images
of the seeds' mean difference from base. The ranking is made on the selection part (val); the evaluation sets are shown
in that order, so that the best row there is not a choice among lucky ones.

    candidates   reads folders, revisions and experiments; groups the seeds of one configuration
    board        which configuration is best, by what, how sure
    trade_off    what each gains in retrieval and loses in zero-shot skill
    comparison   the same as tables and as a page
    ablate       plans the ablations and runs them as DVC experiments
"""

from pipeline_lib.compare.board import make_board
from pipeline_lib.compare.candidates import Candidate, Group, group, read_folder, read_revisions
from pipeline_lib.compare.comparison import comparison_page, ranked_on, terminal_table, write_comparison

__all__ = [
    "Candidate",
    "Group",
    "comparison_page",
    "group",
    "make_board",
    "ranked_on",
    "read_folder",
    "read_revisions",
    "terminal_table",
    "write_comparison",
]
