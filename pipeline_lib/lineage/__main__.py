"""Command line of the lineage; see `python -m pipeline_lib.lineage --help`."""

import logging

from pipeline_lib import terminal
from pipeline_lib.lineage import commands

if __name__ == "__main__":
    with terminal.one_line_errors(level=logging.WARNING):
        commands.main()
