"""Runs ablations as DVC experiments: every file of `ablations/` that shares this configuration's base and data.

Each becomes `dvc exp run --queue` with the differing keys as overrides, for every seed, so that the workspace stays as
it is and base, shards and teacher cache are computed once. An experiment that is already there is not run again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_lib import config, results
from pipeline_lib.compare.candidates import experiments, run_dvc
from pipeline_lib.errors import UserError

log = logging.getLogger(__name__)
FREE = ("refine.", "recipes.")  # what an ablation may change and still share base, shards and teacher cache


def parse_seeds(text: str) -> list[int]:
    """`0`, `0,1,5` or `0..2` as whole numbers.

    >>> parse_seeds("0..2"), parse_seeds("3,1")
    ([0, 1, 2], [3, 1])

    Raises:
        UserError: It is none of these.
    """
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        return list(range(int(found[1]), int(found[2]) + 1))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds: {text!r} is neither like 0, nor 0,1,5, nor 0..2")
    return [int(seed) for seed in text.split(",")]


def overrides(params_file: Path, ablation: Path) -> dict[str, Any]:
    """The dotted keys in which `ablation` differs from `params_file`, with its values."""
    here, there = (results.flat(config.read_params(path)) for path in (params_file, ablation))
    return {key: value for key, value in there.items() if key not in here or here[key] != value}


def plan(params_file: Path, folder: Path, seeds: Sequence[int]) -> dict[str, list[str]]:
    """Arguments of `dvc exp run --queue` by the experiment's name: this configuration and each fitting ablation."""
    chosen: dict[str, dict[str, Any]] = {config.raw_section(params_file, "refine")["recipe"]: {}}
    for path in sorted(folder.glob("*.yaml")):
        changed = overrides(params_file, path)
        if all(key.startswith(FREE) for key in changed):
            chosen[path.stem] = changed
        else:
            log.info("%s: has another base or other data, left out (cp it over params.yaml to run it)", path)
    return {
        f"{name.replace('_', '-')}-seed{seed}": _arguments({**changed, "refine.seed": seed})
        for name, changed in chosen.items()
        for seed in seeds
    }


def _arguments(changed: dict[str, Any]) -> list[str]:
    pairs = (f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items())
    return [argument for pair in pairs for argument in ("--set-param", pair)]


def run(params_file: Path, folder: Path, seeds: Sequence[int]) -> list[str]:
    """Queue what is missing, run the queue, and return the names of all experiments planned.

    Raises:
        UserError: DVC refused, or an experiment failed (`dvc queue logs <name>` tells why).
    """
    planned, there = plan(params_file, folder, seeds), set(experiments())
    missing = {name: arguments for name, arguments in planned.items() if name not in there}
    for name, arguments in missing.items():
        run_dvc("exp", "run", "--queue", "--name", name, *arguments)
    if missing:
        log.info("running %d experiments; %d are there already", len(missing), len(planned) - len(missing))
        run_dvc("exp", "run", "--run-all", "--jobs", "1", capture=False)
    failed = set(planned) - set(experiments())
    if failed:
        raise UserError(f"{', '.join(sorted(failed))}: failed; `dvc queue logs <name>` tells why, then run this again")
    return list(planned)
