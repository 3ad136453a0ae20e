"""What is wrong with params.yaml as a whole, said before any work: every section, and what they say of one another.

Each stage loads its own sections, so that a mistake in a late one would be found only after the epoch: every stage asks
here first. The recipe's block is left to `refine`, which needs torch to try it.

    python -m pipeline_lib.params.check     the same as a command, with the recipe's block; says nothing if all is well

`make run` begins with it, since DVC looks into params.yaml before it starts any stage, and of a misspelt section says
only that it could not find a key.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import terminal
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import check_names, evaluated_sets
from pipeline_lib.params.sections import RECIPES, load_all
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.sources.settings import DataSettings


def check_params(params_file: Path) -> None:
    """Refuse what a later stage would refuse, as far as it can be told without data.

    A stage may read sections here that dvc.yaml does not list for it: they only stop it, and change nothing it makes.

    Args:
        params_file: params.yaml.

    Raises:
        UserError: A section does not load, or parts and evaluation do not fit together.
    """
    sections = load_all(params_file)
    _check_parts(sections["data"], sections["evaluate"].selection, params_file)
    prompt = sections["evaluate"].prompt
    if prompt.count("{}") != 1:
        raise UserError(f"{params_file}: evaluate.prompt: {prompt!r} must hold {{}} once, for the class name")


def _check_parts(data: DataSettings, selection: str, params_file: Path) -> None:
    parts = [part for part, share in data.parts.items() if share != 0]
    if "refine" not in parts:
        raise UserError(
            f"{params_file}: data.parts.refine: missing; training takes the part of this name, and there are only "
            f"{', '.join(parts) or 'none'}; add it (`refine: 0.8`)"
        )
    check_names(parts, data.evaluation)
    evaluated = evaluated_sets([*parts, *data.evaluation], selection, str(params_file))
    for name, chosen in data.evaluation.items():
        others = [other for other in evaluated if other != name]
        if chosen.shift_of is not None and chosen.shift_of not in others:
            raise UserError(
                f"{params_file}: data.evaluation.{name}.shift_of: no other evaluated set or part is called "
                f"`{chosen.shift_of}`; there are {', '.join(others) or 'none'}"
            )
        if chosen.shift_of is not None and name not in evaluated:
            raise UserError(
                f"{params_file}: data.evaluation.{name}.shift_of: choices are made on this set "
                "(evaluate.selection), so the report does not show it; write null"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Check a params.yaml from the command line.

    Raises:
        UserError: See `check_params` and `recipes.make_recipe`.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline_lib.params.check", description=check_params.__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    params_file = parser.parse_args(sys.argv[1:] if arguments is None else arguments).params
    check_params(params_file)
    from pipeline_lib.refine.recipes import make_recipe

    make_recipe(config.load(params_file, RefineSettings).recipe, config.raw_section(params_file, RECIPES) or {})


if __name__ == "__main__":
    with terminal.one_line_errors():
        main()
