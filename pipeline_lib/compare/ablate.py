"""Runs the grid of ablations as DVC experiments: params.yaml as it is, and every ablation on top of it.

Those are every recipe that params.yaml has a block for, and the entries of ablations/changes.yaml. An ablation sets
exactly its own keys; everything else stays the user's: data, model, learning rate, devices, tracking. An entry that
sets more than `refine` and `recipes` is another set-up and not part of the grid, nor is a recipe of its name. Each
experiment runs by itself, in a temporary folder (`dvc exp run --temp`): the workspace and DVC's queue stay as they are,
and base, shards and teacher cache are computed once.

What is there already with the same parameters and code is not run again. Other data in the same place are not noticed
here: `dvc exp remove` the experiments first.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage import revisions
from pipeline_lib.lineage.revisions import current_experiments, run_command, run_dvc
from pipeline_lib.params.ablations import Ablation, read_ablations
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.report import page
from pipeline_lib.results.parameters import DECIDING, dotted_keys
from pipeline_lib.tracking.describe import code_deps

FREE = ("refine.", "recipes.")  # what an ablation may set and still share base, shards and teacher cache
INPUTS = ("data.root", "data.evaluation_root", "base.path", "cache_teacher.teacher")  # may be paths of the user


@dataclass(frozen=True)
class Planned:
    """One experiment of the grid."""

    name: str
    changes: dict[str, Any]  # what is set on top of params.yaml, as dotted keys
    parameters: dict[str, Any]  # all that decide its results, likewise


@dataclass(frozen=True)
class Found:
    """An experiment that is there already under a planned name."""

    commit: str
    differences: list[str]  # from what is planned: `key=its value`, `other <source file>`


def parse_seeds(text: str) -> list[int]:
    """Read `0`, `0,1,5` or `0..2` as whole numbers, each once.

    >>> parse_seeds("0..2"), parse_seeds("3,1")
    ([0, 1, 2], [3, 1])

    Raises:
        UserError: It is none of these, or a range that holds none.
    """
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = int(found[1]), int(found[2])
        if first > last:
            raise UserError(f"--seeds: {text} holds no seed; write {last}..{first}")
        return list(range(first, last + 1))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds: {text!r} is neither like 0, nor 0,1,5, nor 0..2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


# ---- the plan ----


def parse_rates(text: str) -> list[float]:
    """Read `2e-5,5e-5` as learning rates, each once; an empty text holds none.

    >>> parse_rates("2e-5,5e-5")
    [2e-05, 5e-05]

    Raises:
        UserError: One of them is not a positive number.
    """
    rates = []
    for part in text.split(",") if text else ():
        try:
            rates.append(float(part))
        except ValueError:
            rates.append(math.nan)
        if not 0 < rates[-1] < math.inf:
            raise UserError(f"--rates: {part!r} is no learning rate; write them like 2e-5,5e-5,1e-4")
    return list(dict.fromkeys(rates))


def plan(
    params_file: Path, changes_file: Path, seeds: Sequence[int], rates: Sequence[float] = (), only: Sequence[str] = ()
) -> tuple[list[Planned], list[str]]:
    """Return the experiments of the grid, params.yaml as it is first; and a sentence on what is left out.

    Args:
        params_file: What the ablations are put on top of.
        changes_file: Where they are written.
        seeds: Each ablation runs with each of these.
        rates: And at each of these learning rates; none: at that of params.yaml.
        only: The ablations to run, by name; none: all.

    Raises:
        UserError: An ablation is malformed, or sets what params.yaml does not have, or one of `only` is not known.
    """
    here = dotted_keys(config.read_params(params_file))
    variants: dict[str, dict[str, Any]] = {config.load(params_file, RefineSettings).recipe: {}}
    ablations, notes = split_off_setups(read_ablations(params_file, changes_file), changes_file.parent)
    for ablation in ablations:
        changes = dotted_keys(ablation.changes)
        _check_blocks(params_file, here, ablation)
        wanted = deciding(here | changes)
        if same := next((name for name, other in variants.items() if deciding(here | other) == wanted), None):
            says = "left out; with this params.yaml it makes the same run as"
            notes.append(f"{ablation.origin}: {ablation.name}: {says} `{same}`.")
        else:
            variants[ablation.name] = changes
    if unknown := [name for name in only if name not in variants]:
        raise UserError(f"--only: no ablation `{unknown[0]}`; there are {', '.join(variants)}")
    chosen = {name: changes for name, changes in variants.items() if not only or name in only}
    at_rates = [{"refine.learning_rate": rate} for rate in rates] or [{}]
    planned = [
        _planned(here, name, {**changes, **rate}, seed)
        for name, changes in chosen.items()
        for rate in at_rates
        for seed in seeds
    ]
    return planned, notes


def _planned(here: Mapping[str, Any], variant: str, changes: Mapping[str, Any], seed: int) -> Planned:
    rate = changes.get("refine.learning_rate")
    name = "-".join([variant.replace("_", "-"), *([] if rate is None else [f"lr{rate:g}"]), f"seed{seed}"])
    changes = {**changes, "refine.seed": seed}
    return Planned(name, changes, deciding({**here, **changes}))


def split_off_setups(ablations: Sequence[Ablation], folder: Path) -> tuple[list[Ablation], list[str]]:
    """Return the ablations of the grid; and a sentence on those that are other set-ups, whose files are in `folder`."""
    grid = [one for one in ablations if all(key.startswith(FREE) for key in one.changes)]
    others = [one.name for one in ablations if one not in grid]
    sentence = "Other data or models, not part of the grid: {}; `cp {} params.yaml && dvc repro` runs one."
    return grid, [sentence.format(", ".join(others), folder / f"{others[0]}.yaml")] if others else []


def _check_blocks(params_file: Path, here: Mapping[str, Any], ablation: Ablation) -> None:
    """Refuse what `dvc exp run --set-param` and dvc.yaml would refuse later, one by one, and what they cannot do."""
    origin, changes = f"{ablation.origin}: {ablation.name}", dotted_keys(ablation.changes)
    blocks = {f"recipes.{name}" for name in config.raw_section(params_file, "recipes") or {}}
    needed = {*changes, f"recipes.{changes.get('refine.recipe', here['refine.recipe'])}"}
    if missing := sorted(needed - blocks - set(here)):
        raise UserError(f"{params_file}: `{missing[0]}` is missing, which {origin} needs; add it")
    replaced = tuple(f"{key}." for key, value in ablation.changes.items() if isinstance(value, Mapping))
    if kept := sorted(key for key in here if key.startswith(replaced) and key not in changes):
        raise UserError(f"{origin}: replaces a block without `{kept[0]}`, which {params_file} has; add it there")


def deciding(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those dotted keys that decide results: not how and where it runs, nor what other recipes would do."""
    used = (*(f"{section}." for section in DECIDING), f"recipes.{params['refine.recipe']}.")
    return {key: value for key, value in params.items() if key.startswith(used)}


# ---- what is there ----


def look(planned: Sequence[Planned]) -> dict[str, Found]:
    """Look up the experiments of the current commit with a planned name, and whether each is what is planned."""
    there = set(current_experiments())
    with tempfile.TemporaryDirectory() as scratch:
        return {one.name: _look(one, Path(scratch, one.name)) for one in planned if one.name in there}


def _look(planned: Planned, scratch: Path) -> Found:
    files = revisions.open_revision(Path(), planned.name)
    revisions.copy_text_files(files, ["params.yaml"], scratch)
    commit = files.repo.get_rev()
    code = ("dvc.yaml", *code_deps(Path("dvc.yaml")))
    sources = run_command("git", "diff", "--name-only", "--relative", commit, "--", *code).splitlines()
    return Found(commit, [*differences(planned, scratch / "params.yaml"), *(f"other {path}" for path in sources)])


def differences(planned: Planned, params_file: Path) -> list[str]:
    """List the deciding parameters that are others in `params_file` than planned, as `key=value` found there."""
    there = deciding(dotted_keys(config.read_params(params_file)))
    keys = {**planned.parameters, **there}
    return [f"{k}={there.get(k)}" for k in keys if planned.parameters.get(k, ...) != there.get(k, ...)]


def _kept(name: str, found: Found) -> str:
    """Return the name under which an outdated experiment stays."""
    return f"{name}-{found.commit[:7]}"


def plan_table(planned: Sequence[Planned], found: Mapping[str, Found]) -> str:
    """Render the plan as a table: each experiment, what it sets, its state; then what becomes of outdated ones."""
    rows = {one.name: [_changes(one), _state(found.get(one.name))] for one in planned}
    table = page.to_terminal(page.grid(("experiment", "sets", "state"), rows, text_columns=(0, 1, 2)))
    outdated = [_kept(name, one) for name, one in found.items() if one.differences]
    return "\n\n".join([table, *([f"Kept under another name: {', '.join(outdated)}."] if outdated else [])])


def _changes(planned: Planned) -> str:
    changes = [f"{key}={value}" for key, value in planned.changes.items() if key != "refine.seed"]
    return ", ".join(changes) or "nothing: params.yaml as it is"


def _state(found: Found | None) -> str:
    if found is None:
        return "to run"
    if not found.differences:
        return "there already"
    return textwrap.shorten(f"to run again, was made with {', '.join(found.differences)}", 100, placeholder=" …")


# ---- running it ----


def run(
    params_file: Path, changes_file: Path, seeds: Sequence[int], rates: Sequence[float] = (), only: Sequence[str] = ()
) -> list[str]:
    """Say what is planned (see `plan`), run what is missing, and return the names of all experiments planned.

    Raises:
        UserError: DVC refused, an experiment failed, or it would lack its data.
    """
    planned, notes = plan(params_file, changes_file, seeds, rates, only)
    check_inputs(params_file)
    found = look(planned)
    print("\n\n".join([plan_table(planned, found), *notes]), flush=True)
    missing = [one for one in planned if one.name not in found or found[one.name].differences]
    failed = []
    for place, one in enumerate(missing, 1):
        print(f"\n{place} of {len(missing)}: {one.name} (leave params.yaml and code alone until the last)", flush=True)
        if not _execute(one, found.get(one.name)):
            failed.append(one.name)
    if failed:
        raise UserError(f"{', '.join(failed)}: failed, as said above; correct the cause, then run this again")
    return [one.name for one in planned]


def check_inputs(params_file: Path) -> None:
    """Refuse data and weights that a temporary folder would lack: DVC copies there what git or itself has.

    Raises:
        UserError: A relative path holds files that neither has.
    """
    params = dotted_keys(config.read_params(params_file))
    for key in INPUTS:
        value = params.get(key)
        if not isinstance(value, str) or Path(value).is_absolute() or not os.path.exists(value):
            continue
        path = Path(value)
        if any(place.with_name(f"{place.name}.dvc").is_file() for place in (path, *path.parents) if place.name):
            continue
        if unknown := run_command("git", "ls-files", "--others", "--", value).splitlines():
            raise UserError(
                f"{params_file}: {key} `{value}` holds files that git does not have ({unknown[0]}), and experiments "
                f"run in a copy of what git and DVC have; write an absolute path, or `dvc add {value}` and commit"
            )


def _execute(planned: Planned, outdated: Found | None) -> bool:
    """Run one experiment; return whether it succeeded.

    Raises:
        UserError: Parameters, code or commit changed meanwhile.
    """
    if outdated:
        run_dvc("exp", "rename", planned.name, _kept(planned.name, outdated))
    try:
        run_dvc("exp", "run", "--temp", "--name", planned.name, *_arguments(planned.changes), capture=False)
    except UserError:
        return False
    made = look([planned]).get(planned.name)
    if made is None:
        raise UserError(
            f"{planned.name}: ran, but is not among the experiments of the current commit: another was made or checked "
            "out meanwhile; stay on it or go back (`git log`), and run this again"
        )
    if made.differences:
        raise UserError(
            f"{planned.name}: got {', '.join(made.differences)}, which changed after the plan was made; run this again"
        )
    return True


def _arguments(changes: Mapping[str, Any]) -> list[str]:
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items())
    return [argument for pair in pairs for argument in ("--set-param", pair)]
