"""The model in MLflow: logged as code and safetensors (no pickle), scored again, registered on request.

The export is a run of its own below the configuration's row, beside the stages: it carries the digests and names the
run that made the weights. The row links to the model as well, so that it shows in the table of configurations.
mlflow is imported when it is used; stages leave that to `tracking`.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import card, hub, without_package
from pipeline_lib.export.subject import Subject
from pipeline_lib.model import JoinedClip
from pipeline_lib.model.features import l2_normalize, row_difference
from pipeline_lib.report import run as report
from pipeline_lib.results.parameters import dotted_keys
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.tracking.client import Client, Record, prepare_environment
from pipeline_lib.tracking.describe import start_op
from pipeline_lib.tracking.place import project_root, store_name, store_uri
from pipeline_lib.tracking.rows import row_of
from pipeline_lib.tracking.settings import TrackingSettings
from pipeline_lib.tracking.text import reason, safe_name

log = logging.getLogger(__name__)

PACKAGES = ("mlflow", "open_clip_torch", "torch", "torchvision", "timm", "pillow", "numpy", "pandas", "safetensors")
SCRIPT = Path(__file__).with_name("served_model.py")
TOLERANCE = 1e-5  # relative; plain open_clip may lay convolutions out otherwise in memory
LABELS = ("refine.recipe", "refine.seed", "refine.learning_rate", "refine.batch_size", "refine.epochs")


@dataclass(frozen=True)
class Logged:
    """Where the model went."""

    uri: str  # models:/m-...
    run_id: str
    row: str  # name of the configuration's row; empty: the store has none
    store: str
    title: str
    version: str = ""
    registered: str = ""  # name under which it is registered
    alias: str = ""

    @property
    def address(self) -> str:
        """Return the shortest name by which it loads."""
        if not self.registered:
            return self.uri
        return f"models:/{self.registered}" + (f"@{self.alias}" if self.alias else f"/{self.version}")

    def lines(self) -> list[str]:
        """Return what was done and what comes next, for the terminal."""
        below = f"below {self.row}" if self.row else "by itself: no run in this store made these weights"
        said = [
            f"{self.uri}: {self.title}; scored again, equal to torch",
            f"run:   {self.run_id} in {self.store}, {below}",
        ]
        if self.registered:
            said.append(
                f"as:    {self.registered} version {self.version}" + (f", alias {self.alias}" if self.alias else "")
            )
        said.append(f'load:  mlflow.pyfunc.load_model("{self.address}")')
        return [*said, f"serve: {serve_command(self.store, self.address)}"]


def serve_command(store: str, address: str) -> str:
    """Return the command that serves the model on this machine, in this environment."""
    uri = "sqlite:///mlflow.db" if store == "mlflow.db" else store
    return f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m {address} --env-manager local -p 5001"


def open_store(params_file: Path) -> Client:
    """Open the configured MLflow store.

    Raises:
        UserError: It does not answer.
    """
    root = project_root(params_file)
    prepare_environment("required")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _as_user_error(root, "see to the server and to MLFLOW_TRACKING_URI"):
        return Client(root, config.load(params_file, TrackingSettings).experiment)


def check_names(name: str, alias: str) -> None:
    """Refuse what the registry would refuse after the work is done.

    Raises:
        UserError: `name` or `alias` is not allowed.
    """
    if re.search(r"[/:]", name):
        raise UserError(f"--name: `{name}` holds / or :, which stand for version and alias in an MLflow address")
    if alias and not name:
        raise UserError("--alias: an alias belongs to a registered name; pass --name as well")
    if alias and not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", alias, re.IGNORECASE):
        raise UserError(f"--alias: `{alias}` is not allowed; use letters, digits, _ and -, not `latest` and not `v1`")


def log_model(subject: Subject, store: Client, *, name: str = "", alias: str = "") -> Logged:
    """Log the model, load it back, compare, then register it if `name` is given.

    Args:
        subject: What to log.
        store: Where, from `open_store`.
        name: Name in the registry; a new version each time.
        alias: Alias of `name` that is to point to the new version.

    Raises:
        UserError: A name is not allowed, or the store fails.
        RuntimeError: The logged model does not give the features of the one in memory.
    """
    check_names(name, alias)
    uri, where = store_uri(store.root), store_name(store.root)
    with _as_user_error(store.root, "export again"), _default_store(uri):
        return _log(subject, store, where, name, alias)


def _log(subject: Subject, store: Client, where: str, name: str, alias: str) -> Logged:
    import mlflow
    from mlflow.entities import LoggedModelOutput

    start = start_op("export", subject.params_file, {})
    row, producer = find_row(subject, store, start)
    tags = {**start["tags"], **_tags(subject, row, producer)}
    run = store.mlflow.create_run(store.experiment_id, tags=tags, run_name=f"export {subject.name}")
    with mlflow.start_run(run_id=run.info.run_id):
        log.info("logging the model to %s", where)
        info = _log_folder(subject)
        log.info("loading it back and comparing")
        check_served(subject, mlflow.pyfunc.load_model(info.model_uri))
        mlflow.log_metrics(_metrics(subject), model_id=info.model_id)
    if row:
        store.mlflow.log_outputs(row.run_id, [LoggedModelOutput(info.model_id, 0)])
    made = {"uri": info.model_uri, "run_id": run.info.run_id, "row": row.name if row else "", "store": where}
    registered = _register(subject, info.model_uri, name, alias) if name else {}
    return Logged(**made, **registered, title=subject.title)


def find_row(subject: Subject, store: Client, start: Mapping[str, Any]) -> tuple[Record | None, Record | None]:
    """Find the row of the configuration that the weights belong to, and the run that made them, if the store has them.

    It is this configuration's row if that used these weights (made or reused), else the row of the run that made them.
    `start` is what `start_op` says of this configuration.
    """
    stage, digest = subject.made_by
    producer = store.producer(stage, digest)
    row = row_of(store, dict(start))
    if row and row.tags.get(f"stage.{stage}.digest") == digest:
        return row, producer
    return (store.run(producer.tags["mlflow.parentRunId"]) if producer else None), producer


def check_served(subject: Subject, served: Any) -> None:
    """Check that MLflow scores the sample as the model in memory does.

    Raises:
        RuntimeError: They differ.
    """
    import pandas as pd

    answer = served.predict(pd.DataFrame({"image": subject.sample.images, "text": subject.sample.texts}))
    for side, raw in subject.features(subject.clip).items():
        expected, found = l2_normalize(raw), torch.tensor(answer[f"{side}_embedding"].tolist())
        difference = row_difference(found, expected)
        if not difference <= TOLERANCE:  # also where it is NaN
            raise RuntimeError(f"the logged model's {side} embeddings differ by {difference:.2g} (relative)")


def signature(prompt: str) -> Any:
    """Return columns, parameters and results of `served_model`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    numbers = Array(DataType.float)
    optional = {"image_embedding": numbers, "text_embedding": numbers, "label": "string", "probabilities": numbers}
    return ModelSignature(
        # `binary` would decode base64 in some forms of JSON only, and no null
        inputs=Schema([ColSpec(AnyType(), "image", required=False), ColSpec("string", "text", required=False)]),
        outputs=Schema([ColSpec(kind, name, required=False) for name, kind in optional.items()]),
        params=ParamSchema(
            [
                ParamSpec("classes", "string", [], (-1,)),
                ParamSpec("templates", "string", [prompt], (-1,)),
                ParamSpec("normalize", "boolean", True),
            ]
        ),
    )


def requirements(subject: Subject) -> list[str]:
    """Return what the model needs, pinned to what it was checked with (without build tags such as `+cpu`)."""
    text_config = subject.clip.config["model_cfg"]["text_cfg"]
    foreign = text_config.get("hf_model_name") or text_config.get("hf_tokenizer_name")
    more = ("transformers",) if foreign or isinstance(subject.clip, JoinedClip) else ()
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in (*PACKAGES, *more)]


def model_note(subject: Subject) -> str:
    """Compose the note on top of the model's page: what it is, what it takes and gives."""
    verdict = f" {report.sentence(subject.inputs)}" if subject.name == "refined" else ""
    return (
        f"A {subject.title}.{verdict} The table with intervals, licence and provenance: `artifacts/clip/README.md`.\n\n"
        "Input: columns `image` (bytes of an image file, base64 in JSON) and/or `text`; output: embeddings. With the "
        "parameter `classes` (and `templates`, prompts with {} for the class): label and probabilities of each image."
    )


def example_image() -> str:
    """Draw an image, the base64 of a PNG: what an input looks like in JSON, owned by nobody."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill="red")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _log_folder(subject: Subject) -> Any:
    """Log the open_clip folder (with its card) and the script that serves it."""
    import mlflow

    options = _options(subject)
    with tempfile.TemporaryDirectory() as scratch:
        hub.write_hub_folder(subject, Path(scratch) / "clip")
        shutil.copyfile(SCRIPT, Path(scratch) / SCRIPT.name)
        with contextlib.chdir(scratch):  # MLflow writes down where artifacts came from: `clip`, no temporary path
            return mlflow.pyfunc.log_model(python_model=SCRIPT.name, artifacts={"clip": "clip"}, **options)


def _options(subject: Subject) -> dict[str, Any]:
    """Return what MLflow is told about the model."""
    import pandas as pd

    shard, flat = config.load(subject.params_file, ShardSettings), dotted_keys(subject.inputs.parameters)
    return {
        "name": re.sub(r"[/:.%\"']", "_", f"{subject.name}-clip"),
        "signature": signature(subject.inputs.parameters["evaluate"]["prompt"]),
        "input_example": pd.DataFrame({"image": [example_image()], "text": ["a red circle on white"]}),
        "pip_requirements": requirements(subject),
        "metadata": subject.origin,
        "model_config": {
            "max_image_bytes": shard.max_image_bytes,
            "max_image_pixels": shard.max_image_pixels,
            **({"texts": without_package.reading(subject.clip)} if isinstance(subject.clip, JoinedClip) else {}),
        },
        "params": {label: flat[label] for label in LABELS} | ({} if subject.mix is None else {"mix": subject.mix}),
        "tags": {**_labels(subject), "mlflow.note.content": model_note(subject)},
    }


def _labels(subject: Subject) -> dict[str, str]:
    """Return tags of the model and of its registered version."""
    license = {"license": subject.facts.get("license", "unknown")} | card.both_licences(subject)
    return {"weights_digest": subject.facts["weights_digest"], **license}


def _tags(subject: Subject, row: Record | None, producer: Record | None) -> dict[str, str]:
    """Return tags of the export's run, named as those of a stage's run."""
    stage, digest = subject.made_by
    tags = {
        "kind": "export",
        "stage": "export",
        "mlflow.source.name": "pipeline_lib/export",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": f"{subject.title}, as an MLflow model.",
        "weights_digest": subject.facts["weights_digest"],
        f"upstream.{stage}.digest": digest,
        f"upstream.{stage}.run_id": producer.run_id if producer else "unknown",
    }
    return tags | ({"mlflow.parentRunId": row.run_id} if row else {})


def _metrics(subject: Subject) -> dict[str, float]:
    """Return the headlines under the names that the evaluation logs; none for a mix that was not measured."""
    measured: Mapping[str, Mapping[str, float]] = subject.measured or {}
    return {
        safe_name(f"{set_name}/{key}"): value for set_name, values in measured.items() for key, value in values.items()
    }


def _register(subject: Subject, uri: str, name: str, alias: str) -> dict[str, str]:
    import mlflow

    log.info("registering it as %s", name)
    version = str(mlflow.register_model(uri, name, tags=_labels(subject)).version)
    client = mlflow.MlflowClient()
    client.update_model_version(name, version, model_note(subject))
    if alias:
        client.set_registered_model_alias(name, alias, version)
    return {"registered": name, "version": version, "alias": alias}


@contextlib.contextmanager
def _as_user_error(root: Path, remedy: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"MLflow at {store_name(root)}: {reason(error)}; {remedy}") from error


@contextlib.contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Let mlflow's module-level functions, which alone log a pyfunc model, use this store."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
