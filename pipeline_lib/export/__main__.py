"""Command line of the export; see `python -m pipeline_lib.export --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib import export, terminal
from pipeline_lib.core import runtime
from pipeline_lib.core.paths import MODELS
from pipeline_lib.export.subject import Subject


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options of the command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m pipeline_lib.export", description=export.__doc__, formatter_class=raw)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", choices=MODELS, default="refined", help="which model (default: %(default)s)")
    common.add_argument("--mix", type=float, metavar="A", help="(1 - A) base + A refined weights, 0 < A < 1 (WiSE-FT)")
    common.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    common.add_argument("--debug", action="store_true", help="traceback for user errors, more log lines")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    folder.add_argument("--force", action="store_true", help="replace an earlier export in DIR")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{hub,transformers,mlflow,onnx}")

    about = "an open_clip folder with a model card, as the Hugging Face hub expects it"
    hub = kinds.add_parser("hub", parents=[folder, common], help=about, description=f"Write {about}.")
    hub.add_argument("--repository", default="", metavar="ORG/NAME", help="where it will lie on the hub, for the card")

    about = "a CLIPModel or SiglipModel folder for transformers, with its processor, tokenizer and a model card"
    theirs = kinds.add_parser("transformers", parents=[folder, common], help=about, description=f"Write {about}.")
    theirs.add_argument(
        "--repository", default="", metavar="ORG/NAME", help="where it will lie on the hub, for the card"
    )

    about = "an MLflow model: images and texts in, embeddings or class probabilities out"
    mlflow = kinds.add_parser("mlflow", parents=[common], help=about, description=f"Log {about}.")
    mlflow.add_argument("--name", default="", help="register it under this name (a new version each time)")
    mlflow.add_argument("--alias", default="", help="let this alias of NAME point to the new version")

    about = "both towers as ONNX, checked against torch"
    onnx = kinds.add_parser(
        "onnx",
        parents=[folder, common],
        help=about,
        description=f"Write {about}: image.onnx (normalised pixels [batch, 3, H, W] -> features [batch, D]) and "
        "text.onnx (token ids [batch, context length] -> features), the tokenizer's files, and manifest.json with "
        "preprocessing, logit scale and the differences that were found. Where a language model reads the texts, "
        "adapter.onnx (its features [batch, W] -> features) stands in place of text.onnx.",
    )
    onnx.add_argument("--normalize", action="store_true", help="features of unit length (default: raw)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export and say where the result lies and what comes next."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    with terminal.one_line_errors(debug=options.debug):
        print({"hub": _hub, "transformers": _transformers, "mlflow": _mlflow, "onnx": _onnx}[options.kind](options))


def _open(options: argparse.Namespace) -> Subject:
    runtime.prepare(seed=0, num_threads=None, deterministic=True)
    return export.open_subject(options.params, options.model, options.mix)


def _hub(options: argparse.Namespace) -> str:
    from pipeline_lib.export import hub
    from pipeline_lib.export.subject import refuse_to_overwrite

    refuse_to_overwrite(options.to, force=options.force)
    subject = _open(options)
    written = hub.write_hub_folder(subject, options.to, repository=options.repository, force=options.force)
    upload = f"hf upload {options.repository or 'ORG/NAME'} {options.to}"
    again = "" if options.repository else "  (export with --repository ORG/NAME first: the card then says how to load)"
    lines = [
        f"{options.to}: {subject.title}, digest {written.digest[:12]}; read back, features equal bit by bit",
        *(written.tower.lines() if written.tower else ()),
        f"card:    {options.to / hub.CARD}",
        f"publish: {upload}{again}",
    ]
    return "\n".join(lines)


def _transformers(options: argparse.Namespace) -> str:
    from pipeline_lib.base.kinds import kind_of
    from pipeline_lib.export import transformers_folder
    from pipeline_lib.export.subject import refuse_to_overwrite

    transformers_folder.require()
    refuse_to_overwrite(options.to, force=options.force)
    subject = _open(options)
    written = transformers_folder.write_transformers_folder(
        subject, options.to, repository=options.repository, force=options.force
    )
    found = f"largest relative difference of features {written.difference:.1e}"
    lines = [f"{options.to}: {subject.title}; read back by transformers, {found}"]
    if written.other_captions:
        share = f"{len(written.other_captions):,} of {written.captions:,} captions"
        lines.append(f"tokens:  {share} get other token ids there, such as {written.other_captions[0][:60]!r}")
    kind = kind_of(subject.clip)
    lines.append(f'load:    transformers.{kind.model}.from_pretrained("{options.to}"), {kind.processor} likewise')
    return "\n".join(lines)


def _mlflow(options: argparse.Namespace) -> str:
    from pipeline_lib.export import mlflow_model

    mlflow_model.check_names(options.name, options.alias)
    store = mlflow_model.open_store(options.params)
    made = mlflow_model.log_model(_open(options), store, name=options.name, alias=options.alias)
    return "\n".join(made.lines())


def _onnx(options: argparse.Namespace) -> str:
    from pipeline_lib.export import onnx_towers
    from pipeline_lib.export.subject import refuse_to_overwrite

    onnx_towers.require()
    refuse_to_overwrite(options.to, force=options.force)
    subject = _open(options)
    facts = onnx_towers.write_onnx(subject, options.to, normalize=options.normalize, force=options.force)
    lines = [f"{options.to}: {subject.title}, opset {facts['opset']}"]
    lines += [
        f"{tower}.onnx: largest relative difference from torch {found['difference']:.1e} (batches of 1 and 3)"
        for tower, found in facts["towers"].items()
    ]
    if "adapter" in facts["towers"]:
        lines.append("texts:   adapter.onnx takes the language model's features; the card of `export hub` makes them")
    return "\n".join([*lines, f'load:    onnxruntime.InferenceSession("{options.to}/image.onnx")'])


if __name__ == "__main__":
    main()
