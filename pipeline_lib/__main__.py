"""clip-refine: what is done beside the stages, which `dvc repro` runs.

    clip-refine init my/set      write params.yaml for a folder of images and captions
    clip-refine check            name every mistake of params.yaml, and count what its parts hold
    clip-refine search "a cat"   look for images with base and refined, side by side
    clip-refine export hub       the refined model for other tools
    clip-refine compare          which configuration is best
    clip-refine lineage          where every output came from

`clip-refine VERB --help` explains one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pipeline_lib import terminal
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.schema import did_you_mean

VERBS = {
    "init": "pipeline_lib.setup.begin",
    "check": "pipeline_lib.setup.verify",
    "search": "pipeline_lib.search.__main__",
    "export": "pipeline_lib.export.__main__",
    "compare": "pipeline_lib.compare.__main__",
    "lineage": "pipeline_lib.lineage.__main__",
}
NEEDS_NO_LOG = ("init", "check")  # what they find they print


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb of the command line."""
    verb, *others = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if verb in ("-h", "--help"):
        print(__doc__)
        return
    with terminal.one_line_errors(level=30 if verb in NEEDS_NO_LOG else 20):
        if verb not in VERBS:
            raise UserError(f"clip-refine: no verb `{verb}`{did_you_mean(verb, VERBS)}")
        importlib.import_module(VERBS[verb]).main(others)


if __name__ == "__main__":
    main()
