"""Where every output came from: `python -m pipeline_lib.lineage show | sync | check | ui`.

show   print each stage with its state in this configuration, the digest of its output and the MLflow run that made it;
       with --rev of a git revision or DVC experiment, read from there instead of from the workspace
sync   send what was spooled while the tracking server was away, and complete this configuration's row with what came
       from DVC's caches; with --all-exps the rows of all DVC experiments too; safe to run again
check  compare every output folder with its manifest; exit code 1 and a list if a file is missing, changed or unexpected
ui     print the addresses of the views in MLflow, and start its server on the project's store
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import terminal
from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage import commands
from pipeline_lib.lineage.revisions import Snapshot
from pipeline_lib.lineage.ui import serve
from pipeline_lib.tracking.client import store_errors
from pipeline_lib.tracking.place import project_root, store_name
from pipeline_lib.tracking.text import reason


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.lineage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    choices = parser.add_subparsers(dest="command", metavar="show | sync | check | ui")
    texts = {
        "show": "print each stage with its state, the digest of its output and the MLflow run that made it",
        "sync": "send what was spooled and complete the row of this configuration; safe to run again",
        "check": "compare every output with its manifest; exit code 1 where a file is missing, changed or unexpected",
        "ui": "print the addresses of the views in MLflow, and start its server on the project's store",
    }
    show, sync, _, ui = (choices.add_parser(name, help=text, description=text) for name, text in texts.items())
    show.add_argument("--rev", help="git revision or DVC experiment")
    sync.add_argument("--all-exps", action="store_true", help="rows of DVC experiments too")
    ui.add_argument("--port", type=int, default=5000, help="of the server (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands (`show` where none is named) and print its result.

    Raises:
        UserError: `sync` could not send, `check` found a difference, or there is no such revision.
    """
    options = parse(arguments)
    if options.command == "check":
        if problems := commands.check_outputs(options.params):
            raise UserError("\n".join([f"{len(problems)} differences, run `dvc repro`", *problems]))
        print(f"{len(Snapshot(options.params).digests())} outputs agree with their manifests")
        return
    try:
        if options.command == "sync":
            print(commands.sync(options.params, all_experiments=options.all_exps))
        elif options.command == "ui":
            serve(options.params, options.port)
        else:
            print(commands.show(options.params, getattr(options, "rev", None)))
    except UserError:
        raise
    except store_errors() as error:  # it answered at first
        where = store_name(project_root(options.params))
        raise UserError(f"MLflow at {where} failed ({reason(error)}); run the command again") from None


if __name__ == "__main__":
    with terminal.one_line_errors(level=logging.WARNING):
        main()
