"""`python -m tests.faults`: see the package."""

import argparse
import itertools
import logging
import sys
import tempfile
from pathlib import Path

import tests.faults
from tests.faults import table
from tests.tiny_project import STAGES


def main() -> int:
    """Print the table row by row, below each row its findings; exit 1 if there is one."""
    parser = argparse.ArgumentParser(
        description=tests.faults.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(table.ALL)} (default: all)")
    parser.add_argument("--language", action="store_true", help="on a project whose captions a language model reads")
    parser.add_argument("--times", type=int, default=20, help="of each random fault (default: %(default)s)")
    options = parser.parse_args()
    there = table.ALL if options.language else STAGES
    if unknown := [name for name in options.stages if name not in there]:
        parser.error(f"no stage {unknown[0]}{'; see --language' if unknown[0] in table.ALL else ''}")
    findings: list[str] = []
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as top:
        project = table.make(Path(top) / "project", language=options.language)
        stages = [table.Stage(name, project, Path(top) / "trial") for name in options.stages or there]
        few = [] if options.stages or options.language else [table.few_samples(Path(top) / "few")]
        print(table.HEADER, flush=True)
        for row in itertools.chain(*(stage.rows(options.times) for stage in stages), *few):
            print(row, *row.findings, sep="\n", flush=True)
            findings += row.findings
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
