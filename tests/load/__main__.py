"""`python -m tests.load`: see the package."""

import argparse
import sys
import tempfile
from pathlib import Path

import tests.load
from tests.load import made, watch
from tests.load.made import Size
from tests.tiny_project import STAGES

COLUMNS = (("samples", 8), ("seconds", 8), ("CPU s", 8), ("peak MB", 8), ("private", 8), ("2nd half", 9), ("files", 6))
HEADER = f"{'stage':14}" + " ".join(f"{name:>{width}}" for name, width in COLUMNS)


def row(stage: str, size: Size, ran: watch.Ran) -> str:
    """Write what a run took as a line below `HEADER`."""
    values = (
        f"{size.samples:,}",
        f"{ran.seconds:.1f}",
        f"{ran.cpu_seconds:.1f}",
        f"{ran.peak_resident:.0f}",
        f"{max(ran.private, default=0.0):.0f}",
        f"{ran.second_half:+.0f}",
        str(ran.files),
    )
    return f"{stage:14}" + " ".join(f"{value:>{width}}" for value, (_, width) in zip(values, COLUMNS, strict=True))


def main() -> None:
    """Run every stage on a tenth of the size and on the whole, and print a line for each."""
    parser = argparse.ArgumentParser(
        description=tests.load.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in Size(200_000, 2_000, 10_000)._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    size = Size(**vars(parser.parse_args()))
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as top:
        projects = {one: made.make(Path(top) / str(one.samples), one) for one in (size.tenth(), size)}
        for stage in STAGES:
            for one, project in projects.items():
                print(row(stage, one, watch.run(project, stage)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
