"""Command line of what is generated; see `python -m pipeline_lib.params --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import params, terminal
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.generate import find_stale, write_generated


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is out of date in the current folder's project, or name it.

    Raises:
        UserError: With `--check`, something is out of date; or a file that it is generated from cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.params",
        description=params.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if not options.check:
        print("\n".join(map(str, write_generated(Path()))) or "nothing to change")
    elif stale := find_stale(Path()):
        raise UserError(f"{', '.join(map(str, stale))}: out of date; run `make generate`")


if __name__ == "__main__":
    with terminal.one_line_errors():
        main()
