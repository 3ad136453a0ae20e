"""The guards before anything is compared: evaluations, models and params.yaml must belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.made_with import read_made_with
from pipeline_lib.results.folders import Evaluation
from pipeline_lib.results.parameters import changed


def check_parameters(
    params_file: Path, parameters: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any]
) -> None:
    """Refuse parameters that are not those which made an output.

    Args:
        params_file: params.yaml, for the message.
        parameters: What `read_parameters` gave.
        folder: The output, for the message.
        manifest: That of the output.

    Raises:
        UserError: They differ; names each key with both values. Or the manifest does not tell.
    """
    if "parameters" not in manifest:
        raise UserError(
            f"{folder}: does not say which parameters made it, as an older version left it; run `dvc repro`"
        )
    _refuse_changed(params_file, parameters, folder, manifest["parameters"])


def check_made_with(params_file: Path, parameters: Mapping[str, Any], folders: Iterable[Path]) -> None:
    """Refuse parameters that are not those which made `folders`, by the records beside them.

    Raises:
        UserError: They differ, see `check_parameters`; or a record is missing.
    """
    for folder in folders:
        _refuse_changed(params_file, parameters, folder, read_made_with(folder))


def _refuse_changed(
    params_file: Path, parameters: Mapping[str, Any], folder: Path, made_with: Mapping[str, Any]
) -> None:
    if found := changed(made_with, parameters):
        raise UserError(
            f"{params_file}: not what made {folder}: {'; '.join(found)}; run `dvc repro`, or put the former values back"
        )


def check_pair(params_file: Path, parameters: Mapping[str, Any], base: Evaluation, refined: Evaluation) -> None:
    """Refuse evaluations that are not of the same images, or not made with these parameters.

    Raises:
        UserError: See above.
    """
    for evaluation in (base, refined):
        check_parameters(params_file, parameters, evaluation.directory, evaluation.manifest)
    for name in sorted({*base.all_sets, *refined.all_sets}):
        found = [evaluation.all_sets.get(name, {}).get("digest") for evaluation in (base, refined)]
        if found[0] != found[1]:
            raise UserError(f"{base.directory} and {refined.directory}: `{name}` has other images; run `dvc repro`")


def check_weights(base: Evaluation, refined: Evaluation, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse evaluations that are not of the refined model in `folder` and of the base that it came from.

    Raises:
        UserError: They are of others.
    """
    facts = manifest["model"]
    for evaluation, weights in ((base, facts["refined_from"]), (refined, facts["weights_digest"])):
        if evaluation.results["weights_digest"] != weights:
            raise UserError(
                f"{evaluation.directory}: evaluated other weights than those of {folder} and its base; run `dvc repro`"
            )
