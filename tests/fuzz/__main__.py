"""`python -m tests.fuzz`: see the package."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import tests.fuzz
from tests.fuzz import campaign
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Print a row per target, and each finding once; exit 1 if there is one."""
    parser = argparse.ArgumentParser(
        description=tests.fuzz.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="target", help="(default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them together (default: %(default)s)")
    parser.add_argument("--readings", type=int, help="of each, however long they take, instead of minutes")
    parser.add_argument("--seed", type=int, help="of the first round, to make a finding again (default: any)")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz"), help="folder of findings")
    parser.add_argument("--list", action="store_true", help="print the targets")
    options = parser.parse_args()
    if options.list:
        print(*TARGETS, sep="\n")
        return 0
    names = options.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}")
    first = random.randrange(1 << 32) if options.seed is None else options.seed
    how = {"readings": options.readings} if options.readings else {"seconds": options.minutes * 60 / len(names)}
    print(f"seed {first}", campaign.HEADER, sep="\n", flush=True)
    num_findings = 0
    with tempfile.TemporaryDirectory() as top:
        for name in names:
            fuzzed = campaign.fuzz(name, TARGETS[name], Path(top) / name, first, options.keep, **how)
            print(fuzzed, flush=True)
            num_findings += len(fuzzed.findings)
    return num_findings > 0


if __name__ == "__main__":
    sys.exit(main())
