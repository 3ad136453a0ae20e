"""Evaluated configurations: a folder, a git revision or a DVC experiment each; seeds of one configuration together."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import MODELS, Paths
from pipeline_lib.lineage import revisions
from pipeline_lib.results.folders import Evaluation
from pipeline_lib.results.guards import check_made_with, check_pair, check_parameters, check_weights
from pipeline_lib.results.parameters import changed, dotted_keys, read_parameters
from pipeline_lib.results.recorded import check_code

log = logging.getLogger(__name__)
APART = ("refine.seed", "evaluate.linear_probe", "evaluate.few_shot", "evaluate.wise_ft")  # and the keys below them


@dataclass(frozen=True)
class Candidate:
    """One refined model with its base, evaluated."""

    name: str
    parameters: dict[str, Any]  # the sections that decide results
    base: Evaluation
    refined: Evaluation

    @property
    def seed(self) -> int:
        """Return the seed of the refinement."""
        return self.parameters["refine"]["seed"]

    @property
    def recipe(self) -> str:
        """Return the name of the recipe."""
        return self.parameters["refine"]["recipe"]

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Return everything but the seed and what is measured beside the numbers compared, as dotted keys.

        What is null is left out, so that a key that older parameters lack is one that is null.
        """
        values = {key: _plain(value) for key, value in dotted_keys(self.parameters).items() if not _is_apart(key)}
        return {key: value for key, value in values.items() if value is not None}


def _is_apart(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in APART)


@dataclass(frozen=True)
class Group:
    """The seeds of one configuration."""

    label: str  # what sets it apart from the other groups; no two have the same
    varied: dict[str, Any]  # the parameters that do
    candidates: tuple[Candidate, ...]  # by seed


def read_folder(name: str, root: Path) -> Candidate:
    """Read an evaluated project folder: params.yaml and the evaluations that its `paths.eval` names.

    Where the refined model is there too, it must be the one that was evaluated.

    Raises:
        UserError: Something is missing, or models, evaluations and params.yaml do not belong together.
    """
    params_file = root / "params.yaml"
    parameters, paths = read_parameters(params_file), config.load(params_file, Paths)
    base, refined = (Evaluation(root / paths.eval / model) for model in MODELS)
    check_pair(params_file, parameters, base, refined)
    there = [root / folder for folder in (paths.base, paths.shards) if (root / folder).is_dir()]
    check_made_with(params_file, parameters, there)
    check_code(root)
    if (root / paths.refined / artifacts.MANIFEST).is_file():
        manifest = artifacts.read_manifest(root / paths.refined, stage="refine")
        check_parameters(params_file, parameters, paths.refined, manifest)
        check_weights(base, refined, paths.refined, manifest)
    return Candidate(name, parameters, base, refined)


def read_revisions(revisions: Sequence[str], scratch: Path, *, leave_out: bool = False) -> list[Candidate]:
    """Read revisions or experiments of the DVC project in the current folder; their files are copied to `scratch`.

    Raises:
        UserError: A revision is unknown, or its evaluation is neither in the cache nor in a remote (`dvc gc` removed
            it, say); with `leave_out` it is left out and named in the log.
    """
    found = []
    for place, revision in enumerate(revisions):
        try:
            found.append(_read_revision(revision, scratch / f"{place:03d}"))
        except UserError as error:
            if not leave_out:
                raise
            log.warning("left out: %s", error)
    return found


def _read_revision(revision: str, folder: Path) -> Candidate:
    from dvc.exceptions import DvcException

    try:
        files = revisions.open_revision(Path(), revision)
        artifacts.write_text(folder / "params.yaml", files.read_text("params.yaml"))
        lock, paths = files.read_text("dvc.lock"), config.load(folder / "params.yaml", Paths)
        for model in MODELS:
            files.get((paths.eval / model).as_posix(), str(folder / paths.eval / model), recursive=True)
    except (DvcException, OSError) as error:
        raise UserError(f"{revision}: no evaluation to read ({error}); try `dvc exp list`, `dvc pull`") from None
    try:
        check_lock(config.parse_yaml(lock, "dvc.lock"), read_parameters(folder / "params.yaml"), paths)
        return read_folder(revision, folder)
    except UserError as error:
        raise UserError(f"{revision}: {error}") from None


def check_lock(lock: Mapping[str, Any], parameters: Mapping[str, Any], paths: Paths) -> None:
    """Refuse a commit whose params.yaml or models are not those that were evaluated, by what its dvc.lock recorded.

    Raises:
        UserError: A parameter was edited after its stage ran, or a model made again after it was evaluated.
    """
    stages = {name: lock["stages"][name] for name in paths.folders() if name in lock["stages"] and name != "report"}
    for name, stage in stages.items():
        if found := changed(stage.get("params", {}).get("params.yaml", {}), parameters):
            raise UserError(
                f"params.yaml is not what stage `{name}` was run with: {'; '.join(found)}; run `dvc repro` and commit"
            )
    made = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", ())}
    for name, stage in stages.items():
        for read in stage.get("deps", ()):
            if made.get(read["path"], read.get("md5")) != read.get("md5"):
                raise UserError(
                    f"stage `{name}` read another {read['path']} than lies there; run `dvc repro` and commit"
                )


def group(candidates: Iterable[Candidate]) -> list[Group]:
    """Group candidates by configuration, seeds together, labelled by the parameters in which the groups differ.

    Where one seed of a configuration gave two different models (other code, another machine), parameters do not tell
    them apart: each candidate of it stands alone, under its own name. Candidates of one name are numbered.
    """
    found: dict[str, dict[int, Candidate]] = {}
    clashes = set()
    candidates = list(candidates)
    names = _numbered([candidate.name for candidate in candidates])
    candidates = [replace(candidate, name=name) for candidate, name in zip(candidates, names, strict=True)]
    for candidate in candidates:
        key = artifacts.digest(candidate.configuration)
        twin = found.setdefault(key, {}).setdefault(candidate.seed, candidate)
        if twin.refined.results["weights_digest"] != candidate.refined.results["weights_digest"]:
            clashes.add(key)
    members = [[seeds[seed] for seed in sorted(seeds)] for key, seeds in found.items() if key not in clashes]
    members += [[c] for c in candidates if artifacts.digest(c.configuration) in clashes]
    varied = _varied([one[0] for one in members])
    labels = _labels([one[0] for one in members], varied)
    return [Group(label, different, tuple(one)) for label, different, one in zip(labels, varied, members, strict=True)]


def _plain(value: Any) -> Any:
    """Return a value with whole numbers as such, also where they were written with a point."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _varied(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return for each candidate what not all have alike; a recipe's own parameters only among those that share it."""
    alike = _alike(candidates) if candidates else set()
    of_recipe = {name: _alike([c for c in candidates if c.recipe == name]) for name in {c.recipe for c in candidates}}
    found = []
    for candidate in candidates:
        shared = alike | {key for key in of_recipe[candidate.recipe] if key.startswith("recipes.")}
        found.append({key: value for key, value in candidate.configuration.items() if key not in shared})
    return found


def _alike(candidates: Sequence[Candidate]) -> set[str]:
    """Return the keys that all candidates have with one value."""
    first, *others = (candidate.configuration for candidate in candidates)
    return {key for key, value in first.items() if all(other.get(key) == value for other in others)}


def _labels(candidates: Sequence[Candidate], varied: Sequence[dict[str, Any]]) -> list[str]:
    """Return a label for each; those that parameters do not tell apart get the candidate's name."""
    labels = [_label(*one) for one in zip(candidates, varied, strict=True)]
    named = [f"{label} ({one.name})" for label, one in zip(labels, candidates, strict=True)]
    count = Counter(labels)
    return _numbered([n if count[label] > 1 else label for label, n in zip(labels, named, strict=True)])


def _numbered(texts: Sequence[str]) -> list[str]:
    """Return the texts, each that came before with a number.

    >>> _numbered(["a", "b", "a"])
    ['a', 'b', 'a 2']
    """
    found: list[str] = []
    for text in texts:
        tries = itertools.chain([text], (f"{text} {number}" for number in itertools.count(2)))
        found.append(next(one for one in tries if one not in found))
    return found


def _label(candidate: Candidate, varied: dict[str, Any]) -> str:
    """Return the recipe, then what else is different."""
    rest = [f"{key.rsplit('.', 1)[-1]} {value}" for key, value in varied.items() if key != "refine.recipe"]
    return ", ".join([candidate.recipe, *rest])
