"""Command line of the comparison; see `python -m pipeline_lib.compare --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import compare, terminal
from pipeline_lib.compare import ablate, candidates, comparison
from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage.revisions import current_experiments
from pipeline_lib.params.ablations import CHANGES


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.compare",
        description=compare.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", metavar="[NAME=]DIR", help="evaluated project folders, or: queue")
    parser.add_argument("--revs", nargs="+", default=[], metavar="REV", help="git revisions or DVC experiments")
    parser.add_argument("--experiments", action="store_true", help="all DVC experiments of the current commit")
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="its section evaluate gives confidence and resampling (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path("data/compare"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="with queue: 0, 0,1,5 or 0..2 (default: %(default)s)")
    parser.add_argument("--rates", default="", help="with queue: learning rates, such as 2e-5,5e-5,1e-4")
    parser.add_argument("--only", default="", help="with queue: these ablations, such as contrastive,hycd")
    parser.add_argument("--ablations", type=Path, default=CHANGES, help="with queue (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read all candidates, write the page, print the table.

    Raises:
        UserError: A candidate cannot be read.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    folders, revisions, experiments = list(options.folders), list(options.revs), list[str]()
    if folders == ["queue"]:
        folders = []
        seeds, rates = ablate.parse_seeds(options.seeds), ablate.parse_rates(options.rates)
        only = options.only.split(",") if options.only else []
        revisions += ablate.run(Path("params.yaml"), options.ablations, seeds, rates, only)
    elif options.experiments or not (folders or revisions):
        experiments = current_experiments()
        folders += [] if options.experiments else ["."]
    with tempfile.TemporaryDirectory() as scratch:
        found = [_folder(argument) for argument in folders]
        found += compare.read_revisions(revisions, Path(scratch, "named"))
        found += compare.read_revisions(experiments, Path(scratch, "all"), leave_out=True)  # nobody asked for this one
        if not found:
            raise UserError("nothing to compare: name folders, --revs, or run experiments (`dvc exp run`)")
        ranking = compare.make_board(compare.group(found), options.params)
        compare.write_comparison(ranking, options.output)
        print(f"{compare.terminal_table(ranking)}\n\n{options.output / comparison.HTML}")


def _folder(argument: str) -> candidates.Candidate:
    """Read `DIR` or `NAME=DIR`, where both may hold `=`: the longest DIR that is there."""
    splits = [("", argument), *((argument[:at], argument[at + 1 :]) for at, c in enumerate(argument) if c == "=")]
    name, path = next((split for split in splits if Path(split[1]).is_dir()), splits[-1])
    return compare.read_folder(name or Path(path).resolve().name, Path(path))


if __name__ == "__main__":
    with terminal.one_line_errors():
        main()
