"""What is wrong with params.yaml as a whole, said before any work: every section, and what they say of one another.

Each stage loads its own sections, so that a mistake in a late one would be found only after the epoch: every stage asks
here first. The recipe's block is left to `refine`, which needs torch to try it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import Mistakes, UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.shards import check_names, evaluated_sets
from pipeline_lib.params.sections import RECIPES, load_what_loads
from pipeline_lib.sources.settings import DataSettings


def check_params(params_file: Path) -> None:
    """Refuse what a later stage would refuse, as far as it can be told without data.

    A stage may read sections here that dvc.yaml does not list for it: they only stop it, and change nothing it makes.

    Args:
        params_file: params.yaml.

    Raises:
        UserError: Sections do not load, or parts and evaluation do not fit together; all that is wrong is said.
    """
    find_mistakes(params_file)[1].raise_all()


def find_mistakes(params_file: Path) -> tuple[dict[str, Any], Mistakes]:
    """Return the sections that load, and all that `check_params` refuses.

    Raises:
        UserError: The file cannot be read, or holds no sections.
    """
    sections, mistakes = load_what_loads(params_file)
    data, evaluate = sections.get("data"), sections.get("evaluate")
    if data is not None and evaluate is not None:
        with mistakes:
            _check_parts(data, evaluate.selection, params_file)
    if data is not None and "paths" in sections:
        with mistakes:
            _check_roots(data, sections["paths"], params_file)
    if evaluate is not None and evaluate.prompt.count("{}") != 1:
        mistakes.sentences.append(
            f"{params_file}: evaluate.prompt: {evaluate.prompt!r} must hold {{}} once, for the class name"
        )
    with mistakes:
        _check_language(sections, params_file)
    with mistakes:
        _check_prior(sections, params_file)
    return sections, mistakes


def _check_roots(data: DataSettings, paths: Paths, params_file: Path) -> None:
    """Refuse a set's folder that holds what a stage writes: DVC takes nothing as both dependency and output."""
    for key in ("root", "evaluation_root"):
        folder = os.path.normpath(getattr(data, key))
        for name in (field.name for field in dataclasses.fields(paths)):
            output = os.path.normpath(getattr(paths, name))
            if Path(output).is_relative_to(folder):
                raise UserError(
                    f"{params_file}: data.{key}: `{folder}` holds paths.{name} (`{output}`), which a stage writes; "
                    "name a folder with the sets alone, such as data/evaluation"
                )


def _check_language(sections: Mapping[str, Any], params_file: Path) -> None:
    """Refuse a language model that only some of the keys ask for that must ask for it together."""
    if not {"paths", "language", "refine", "cache_teacher"} <= sections.keys():
        return
    paths, refine = sections["paths"], sections["refine"]
    asked = {
        "language.stages": bool(sections["language"].stages),
        "paths.text": paths.has_language,
        "refine.adapter": refine.adapter is not None,
    }
    if len(set(asked.values())) > 1:
        lacking = " and ".join(key for key, is_asked in asked.items() if not is_asked)
        raise UserError(
            f"{params_file}: a language model needs language.stages `{{make: {{}}}}`, paths.text `{paths.language}` "
            f"and a block refine.adapter together; {lacking} does not ask for it (without one: {{}}, the value of "
            "paths.base, and null)"
        )
    if sections["language"].stages.keys() - {"make"}:
        raise UserError(f"{params_file}: language.stages: there is one stage, `make`; write {{make: {{}}}}")
    if paths.has_language and paths.text != paths.language:
        raise UserError(f"{params_file}: paths.text: `{paths.text}` is neither paths.base nor paths.language")
    if paths.has_language and refine.lock_text:
        raise UserError(f"{params_file}: refine.lock_text: true, but a language model is never trained; write false")
    if paths.has_language and sections["cache_teacher"].mode == "online":
        raise UserError(
            f"{params_file}: cache_teacher.mode: `online` reads token ids, and with a language model there are only "
            "its features; write cached"
        )


def _check_prior(sections: Mapping[str, Any], params_file: Path) -> None:
    """Refuse a prior that takes the statistics of a teacher whose features nobody stores."""
    if not {"refine", "cache_teacher"} <= sections.keys() or sections["cache_teacher"].mode != "online":
        return
    recipe = sections["refine"].recipe
    block = (config.read_params(params_file).get(RECIPES) or {}).get(recipe)
    prior = block.get("prior") if isinstance(block, Mapping) else None
    if isinstance(prior, Mapping) and prior.get("kind") == "teacher":
        raise UserError(
            f"{params_file}: recipes.{recipe}.prior.kind: `teacher` needs the teacher's statistics, which only "
            "cache_teacher.mode `cached` stores; write that, or another kind"
        )


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
