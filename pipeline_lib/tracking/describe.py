"""What is said about a run before any store is asked: parameters, tags, names, and where store and spool live."""

from __future__ import annotations

import ast
import getpass
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.artifacts import digest as digest_of
from pipeline_lib.core.artifacts import sha256_file
from pipeline_lib.tracking.spool import Op

SECRETS = "token|key|secret|passw|pwd|auth|credential|sig"  # in the names of a URL's parameters
SOURCES = (".py", ".j2")  # endings of what decides a result
PACKAGE = Path(__file__).resolve().parents[1]


def describe(
    stage: str, params_file: Path, upstream: Mapping[str, str], *, origin: Mapping[str, str] | None = None
) -> Op:
    """The operation that begins a run: everything needed to create it and its row, now or later.

    Args:
        stage: The stage's name.
        params_file: params.yaml.
        upstream: Digest of each input's manifest, by the stage that made it.
        origin: Tags that say which commit and experiment the files beside `params_file` are a copy of; without it
            they are the working tree, and git and DVC's environment are asked.
    """
    dvc_stage = os.environ.get("DVC_STAGE", "")
    name = safe_name(dvc_stage if dvc_stage.startswith(f"{stage}@") else stage)
    params = resolved(config.read_params(params_file))
    tags = row_tags(params_file, origin)
    return {
        "op": "start",
        "uid": uuid.uuid4().hex,
        "stage": name,
        "time": now(),
        "row": row_name(params, tags),
        "note": row_note(params, tags),
        "params": flatten(params),
        "tags": tags,
        "source": f"stages/{stage.split('@')[0]}.py",
        "about": about(stage.split("@")[0]),
        "upstream": {safe_name(s): d for s, d in upstream.items()},
    }


def project_root(params_file: Path) -> Path:
    """Where store and spool live: $DVC_ROOT, else the folder that holds .dvc, else .git, else that of params.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    folder = params_file.resolve().parent
    marked = [p for mark in (".dvc", ".git") for p in (folder, *folder.parents) if (p / mark).exists()]
    return marked[0] if marked else folder


def store_uri(root: Path) -> str:
    """$MLFLOW_TRACKING_URI, else the sqlite file in the project's root, to which a relative one is also anchored."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return f"sqlite:///{root / file}" if file != uri else uri


def store_name(root: Path) -> str:
    """`store_uri` as one shows it: `mlflow.db` for the usual place, and without credentials."""
    uri = store_uri(root)
    return "mlflow.db" if uri == f"sqlite:///{root}/mlflow.db" else public(uri)


def workspace(root: Path) -> str:
    """Tells the rows of several clones apart in a store that they share: an id that is made once for each folder.

    It does not depend on the host, since containers and the nodes of a cluster change theirs between two stages.
    """
    if store_name(root) == "mlflow.db":
        return "here"
    mark = root / f"mlflow.db.workspace-{digest_of(str(root))[:8]}"  # a copied folder is another one
    if not mark.exists():
        made = uuid.uuid4().hex[:12]
        scratch = mark.with_name(f"{mark.name}-{made}")
        scratch.write_text(made, encoding="utf-8")
        with suppress(FileExistsError):  # another process was first
            os.link(scratch, mark)
        scratch.unlink()
    return mark.read_text(encoding="utf-8")


def is_remote(uri: str) -> bool:
    """Whether a network lies between us and the store."""
    return not uri.startswith("sqlite:")


def resolved(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the blocks of recipes that are not chosen: they decide nothing and clutter every table."""
    chosen = (params.get("refine") or {}).get("recipe")
    return {**params, "recipes": {k: v for k, v in (params.get("recipes") or {}).items() if k == chosen}}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested blocks as {dotted name: text}, within MLflow's limits and without what belongs to one machine."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            plain = [public(v) if isinstance(v, str) else v for v in value] if isinstance(value, list) else value
            flat[safe_name(key)] = public(plain if isinstance(plain, str) else json.dumps(plain))[:6000]
    return flat


def safe_name(name: str) -> str:
    """`name` in the characters that MLflow allows in names (`@` is not one)."""
    return re.sub(r"[^/\w.\- :]", "-", name)[:250]


def public(text: str) -> str:
    """`text` without the credentials of URLs; of an absolute path, alone or within, only the last part stays."""
    text = re.sub(r"://\S*@", "://***@", text)
    text = re.sub(rf"([?&][^=&\s]*(?:{SECRETS})[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.I)
    if text.startswith(("/", "~")) and "\n" not in text:
        return f".../{Path(text).name}"
    return re.sub(r"(?<![\w/:.~*-])[/~][^\s'\"]*/([^\s'\"/]+)", r".../\1", text)


def configuration(params_file: Path, root: Path = PACKAGE.parent) -> str:
    """A hash of what decides the results: resolved parameters (not how they are run), dvc.yaml, the code it names."""
    params = resolved(config.read_params(params_file))
    graph = params_file.parent / "dvc.yaml"
    files = {name: sha256_file(root / name) for name in code_files(graph, root)}
    files["dvc.yaml"] = digest_of(graph.read_text(encoding="utf-8") if graph.is_file() else "")
    return digest_of({"params": {k: v for k, v in params.items() if k not in ("runtime", "tracking")}, "files": files})


def code_deps(graph: Path) -> list[str]:
    """List the code that the pipeline's stages depend on, files and folders, as dvc.yaml names it."""
    text = graph.read_text(encoding="utf-8") if graph.is_file() else ""
    return sorted(set(re.findall(r"^ *- ((?:stages|pipeline_lib)/\S+)$", text, flags=re.M)))


def code_files(graph: Path, root: Path) -> list[str]:
    """List the source files of `code_deps` that are there, relative to `root`."""
    found = []
    for name in code_deps(graph):
        path = root / name
        files = path.rglob("*") if path.is_dir() else [path]
        found += [file.relative_to(root).as_posix() for file in files if file.suffix in SOURCES and file.is_file()]
    return sorted(set(found))


def row_tags(params_file: Path, origin: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tags that row and child share; `pipeline.key` tells the rows of a workspace apart. `origin`: `describe`."""
    if origin is None:
        experiment = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.exp_baseline": "DVC_EXP_BASELINE_REV"}
        origin = {tag: os.environ.get(name, "") for tag, name in experiment.items()} | git_tags(params_file.parent)
        configured = configuration(params_file)
    else:
        configured = configuration(params_file, params_file.parent)
    tags = {
        "pipeline.config": configured[:16],
        "pipeline.key": digest_of([configured, origin.get("dvc.exp_name", "")])[:16],
        "dvc.lock": lock_digest(params_file),
        "mlflow.source.type": "LOCAL",
        **origin,
    }
    with suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    return {name: value for name, value in tags.items() if value}


def lock_digest(params_file: Path) -> str:
    """SHA-256 of dvc.lock as it is now (while a pipeline runs it holds the stages before this one), or ''."""
    lock = params_file.parent / "dvc.lock"
    return sha256_file(lock) if lock.is_file() else ""


def git_tags(folder: Path) -> dict[str, str]:
    """Commit, whether code or tracked files differ from it, and which; dvc.lock aside, which every run rewrites."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603

    try:
        commit = git("rev-parse", "HEAD").strip()
        listed = git("status", "--porcelain", "--untracked-files=all").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}  # not a repository, no commit yet, or no git
    changed = [line[3:] for line in listed if not line.startswith("?? ") or line.endswith(".py")]  # code counts if new
    changed = [name for name in changed if Path(name).name != "dvc.lock"]
    dirty = {"git.dirty": "true", "git.changed": " ".join(changed)[:500]} if changed else {"git.dirty": "false"}
    return {"mlflow.source.git.commit": commit, **dirty}


def row_name(params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """The DVC experiment's name, else recipe and seed with some of the key."""
    refine = params.get("refine") or {}
    return tags.get("dvc.exp_name") or f"{refine.get('recipe')}-seed{refine.get('seed')}-{tags['pipeline.key'][:6]}"


def row_note(params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """What the row's page says on top."""
    refine = params.get("refine") or {}
    again = "`dvc repro`"
    if tags.get("dvc.exp_name"):
        again = f"`dvc exp apply {tags['dvc.exp_name']}`, then `dvc repro`"
    commit = tags.get("mlflow.source.git.commit", "")[:10]
    at = f" at commit `{commit}`{' plus ' + tags['git.changed'] if 'git.changed' in tags else ''}" if commit else ""
    return (
        f"Recipe **{refine.get('recipe')}**, seed {refine.get('seed')}, learning rate {refine.get('learning_rate')}, "
        f"batch {refine.get('batch_size')}.\n\nAgain: {again}{at}."
    )


def about(stage: str) -> str:
    """What the stage's script says that it does: the first line of its docstring."""
    script = PACKAGE.parent / "stages" / f"{stage}.py"
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) if script.is_file() else None
    return (text or stage).splitlines()[0]


def now() -> int:
    """Milliseconds since 1970, MLflow's time."""
    return time.time_ns() // 1_000_000
