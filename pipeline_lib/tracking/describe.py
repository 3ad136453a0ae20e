"""What is said of a run before MLflow is asked: parameters, tags, name and note, and a hash of its configuration."""

from __future__ import annotations

import ast
import getpass
import json
import os
import re
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.artifacts import digest, sha256_file
from pipeline_lib.tracking.place import CODE
from pipeline_lib.tracking.spool import Op, now
from pipeline_lib.tracking.text import public, safe_name

SOURCES = (".py", ".j2")  # endings of what decides a result
REWRITTEN = ("dvc.lock", "report.json")  # by every run


def start_op(
    stage: str, params_file: Path, upstream: Mapping[str, str], *, origin: Mapping[str, str] | None = None
) -> Op:
    """Return the operation `start` (see `spool`): everything that creates a run and its row, now or later.

    Args:
        stage: The stage's name.
        params_file: params.yaml.
        upstream: For each stage whose output this one reads, the digest of that output's manifest.
        origin: Tags that name the commit and experiment from which `params_file` and the files beside it were copied;
            None for the working tree, where git and DVC's environment variables tell.
    """
    dvc_stage = os.environ.get("DVC_STAGE", "")
    name = safe_name(dvc_stage if dvc_stage.startswith(f"{stage}@") else stage)
    params = resolved(config.read_params(params_file))
    tags = row_tags(params_file, origin)
    script = stage.split("@")[0]
    return {
        "op": "start",
        "uid": uuid.uuid4().hex,
        "stage": name,
        "time": now(),
        "row": row_name(params, tags),
        "note": row_note(params, tags),
        "params": flatten(params),
        "tags": tags,
        "source": f"stages/{script}.py",
        "about": about(script),
        "upstream": {safe_name(s): d for s, d in upstream.items()},
    }


def resolved(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without the recipes that `refine.recipe` does not choose; those decide nothing."""
    chosen = (params.get("refine") or {}).get("recipe")
    return {**params, "recipes": {k: v for k, v in (params.get("recipes") or {}).items() if k == chosen}}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested blocks as {dotted name: text}, without absolute paths and credentials, within MLflow's limits."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            plain = [public(v) if isinstance(v, str) else v for v in value] if isinstance(value, list) else value
            flat[safe_name(key)] = public(plain if isinstance(plain, str) else json.dumps(plain))[:6000]
    return flat


def configuration(params_file: Path, root: Path = CODE) -> str:
    """Return a hash of what decides the results: parameters (but how they are run), dvc.yaml and the code it names."""
    params = resolved(config.read_params(params_file))
    graph = params_file.parent / "dvc.yaml"
    files = {name: sha256_file(root / name) for name in code_files(graph, root)}
    files["dvc.yaml"] = digest(graph.read_text(encoding="utf-8") if graph.is_file() else "")
    return digest({"params": {k: v for k, v in params.items() if k not in ("runtime", "tracking")}, "files": files})


def code_deps(graph: Path) -> list[str]:
    """List the code that the pipeline's stages depend on, files and folders, as dvc.yaml (`graph`) names it."""
    text = graph.read_text(encoding="utf-8") if graph.is_file() else ""
    return sorted(set(re.findall(r"^ *- ((?:stages|pipeline_lib)/\S+)$", text, flags=re.M)))


def code_files(graph: Path, root: Path) -> list[str]:
    """List the source files of `code_deps` that are there, relative to `root`."""
    files = [file for name in code_deps(graph) for file in (root / name, *(root / name).rglob("*"))]
    return sorted({file.relative_to(root).as_posix() for file in files if file.suffix in SOURCES and file.is_file()})


def row_tags(params_file: Path, origin: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the tags that row and run share; equal `pipeline.key` means one row. `origin`: see `start_op`."""
    if origin is None:
        experiment = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.exp_baseline": "DVC_EXP_BASELINE_REV"}
        origin = {tag: os.environ.get(name, "") for tag, name in experiment.items()} | git_tags(params_file.parent)
        configured = configuration(params_file)
    else:
        configured = configuration(params_file, params_file.parent)
    lock = params_file.parent / "dvc.lock"  # while a pipeline runs it holds the stages before this one
    tags = {
        "pipeline.config": configured[:16],
        "pipeline.key": digest([configured, origin.get("dvc.exp_name", "")])[:16],
        "dvc.lock": sha256_file(lock) if lock.is_file() else "",
        "mlflow.source.type": "LOCAL",
        **origin,
    }
    with suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    return {name: value for name, value in tags.items() if value}


def git_tags(folder: Path) -> dict[str, str]:
    """Return the commit, whether code or tracked files differ from it, and which; not those that runs rewrite."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603

    try:
        commit = git("rev-parse", "HEAD").strip()
        below = git("rev-parse", "--show-prefix").strip()  # of a project that is a part of its repository
        listed = git("status", "--porcelain", "--untracked-files=all", "--", ".").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}  # not a repository, no commit yet, or no git
    changed = [line[3:] for line in listed if not line.startswith("?? ") or line.endswith(".py")]  # code counts if new
    changed = [name.removeprefix(below) for name in changed if Path(name).name not in REWRITTEN]
    dirty = {"git.dirty": "true", "git.changed": " ".join(changed)[:500]} if changed else {"git.dirty": "false"}
    return {"mlflow.source.git.commit": commit, **dirty}


def row_name(params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return the DVC experiment's name, else `<recipe>-seed<seed>-<start of the key>`."""
    refine = params.get("refine") or {}
    return tags.get("dvc.exp_name") or f"{refine.get('recipe')}-seed{refine.get('seed')}-{tags['pipeline.key'][:6]}"


def row_note(params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Return the description of a row's page: the main settings and the commands that make it again."""
    refine, experiment = params.get("refine") or {}, tags.get("dvc.exp_name")
    again = f"`dvc exp apply {experiment}`, then `dvc repro`" if experiment else "`dvc repro`"
    commit = tags.get("mlflow.source.git.commit", "")[:10]
    at = f" at commit `{commit}`{' plus ' + tags['git.changed'] if 'git.changed' in tags else ''}" if commit else ""
    return (
        f"Recipe **{refine.get('recipe')}**, seed {refine.get('seed')}, learning rate {refine.get('learning_rate')}, "
        f"batch {refine.get('batch_size')}.\n\nAgain: {again}{at}."
    )


def about(stage: str) -> str:
    """Return the first line of the docstring of the stage's script; the stage's name where it has no script."""
    script = CODE / "stages" / f"{stage}.py"
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) if script.is_file() else None
    return (text or stage).splitlines()[0]
