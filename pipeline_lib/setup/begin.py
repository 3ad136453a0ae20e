"""Write params.yaml for a folder of images and captions: `clip-refine init my/set`.

Every format's own reader is tried on the folder. Parts, batch and learning rate are chosen by the number of images, and
a micro-batch by the memory that is free; the rest of params.yaml stays as it is, and its former text is kept beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.check import check_params
from pipeline_lib.params.whole_file import change_values, dump_document, load_document
from pipeline_lib.setup.verify import count_parts
from pipeline_lib.sources import formats
from pipeline_lib.sources.settings import DataSettings, EvaluationSet

EVALUATED = ("urban1k", "xm3600", "clip_benchmark", "caption_choice", "image_pairs")  # sets to evaluate on alone
FORMATS = (  # after those, in this order: the first that fits
    "coco",
    "flickr",
    "docci",
    "jsonl",
    "sharegpt4v",
    "webdataset",
    "hugging_face",
    "image_folder",
)
BATCHES = (512, 256, 128, 64, 32, 16)
FEWEST_STEPS = 24  # of an epoch, as the default has
DISTANCE = 1e-6 * 231  # learning rate × steps of the paper: about how far AdamW moves a weight in an epoch
RATES = (1e-6, 1e-5)  # lowest, and highest that is proposed
SPLITS = {"refine": "train", "val": "val", "eval": "test"}
TRIED = 20  # images that must be there


@dataclass(frozen=True)
class Found:
    """A set as one of the formats reads it."""

    format: str
    num_images: int  # with captions
    num_captions: int
    splits: Sequence[str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write params.yaml and say what was chosen, why, and what it will take.

    Raises:
        UserError: The folder is none of a format's, or holds too little.
    """
    parser = argparse.ArgumentParser(
        prog="clip-refine init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="images and captions, in one of the formats of docs/data.md")
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="of open_clip (default: %(default)s)")
    parser.add_argument("--pretrained", default="openai", help="tag of its weights (default: %(default)s)")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="to be changed (default: %(default)s)")
    options = parser.parse_args(arguments)
    found = look_at(options.folder)
    print(f"{options.folder}: {found.format}, {found.num_images:,} images, {found.num_captions:,} captions")
    changes = {
        "base.source": "open_clip",
        "base.model": options.model,
        "base.pretrained": options.pretrained,
        "base.path": None,
        "data.format": found.format,
        "data.root": os.path.relpath(options.folder),
        "data.images": None,
        "data.annotations": None,
        "data.limit": None,
        "data.parts": choose_parts(found),
        "data.evaluation": {},
        "evaluate.prompt": "a photo of a {}",
        "evaluate.selection": "val",
    }
    text = _changed(options.params, changes)
    counts = count_parts(_data(found.format, options.folder, choose_parts(found)))
    pairs, captions = counts["refine"]["images with captions"], counts["refine"]["captions"]
    changes = choose_steps(pairs) | _fit(options.model, pairs, captions, sum(c["images"] for c in counts.values()))
    _write(options.params, text, changes)
    for part, counted in counts.items():
        print(f"part {part}: {counted['images']:,} images, {counted['captions']:,} captions")
    rate = changes["refine.learning_rate"]
    print(
        f"{options.params}: written; what it was is {_former(options.params)}\n"
        "next: clip-refine check, then dvc repro; and, since the learning rate decides most:\n"
        f"      make ablate SEEDS=0..2 RATES={rate / 3:.0e},{rate:.0e},{3 * rate:.0e} ONLY=clip_refine,hycd,contrastive"
    )


def look_at(folder: Path) -> Found:
    """Return the set in a folder as the first format reads it that fits.

    Raises:
        UserError: None does, and says what each misses; or it is a set to evaluate on, and says of which format.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    reasons = [f"{name}: {_refuse_evaluated(name, folder)}" for name in EVALUATED]
    for name in FORMATS:
        try:
            return _try(name, folder)
        except UserError as error:
            reasons.append(f"{name}: {error}")
    raise UserError(f"{folder}: in none of the formats of docs/data.md\n" + "\n".join(f"- {one}" for one in reasons))


def _refuse_evaluated(name: str, folder: Path) -> str:
    """Return why a folder is no set of a format that is evaluated alone.

    Raises:
        UserError: It is one; says what to write.
    """
    language = "en" if name == "xm3600" else None  # of its 36, to know the layout by
    called = folder.resolve().name
    chosen = EvaluationSet(format=name, path=".", language=language)  # type: ignore[arg-type]
    data = dataclasses.replace(_data("jsonl", folder, {}), evaluation={called: chosen})
    try:
        if not any(True for _ in formats.open_evaluation_set(data, called).samples):
            return "no sample"
    except UserError as error:
        return str(error)
    keys = f"format: {name}, path: {called}" + (f", language: {language}" if language else "")
    raise UserError(
        f"{folder}: a set to evaluate on, in format {name}; add `{called}: {{{keys}}}` to data.evaluation of "
        "params.yaml, its path relative to data.evaluation_root, and give init a set to train on"
    )


def _try(name: str, folder: Path) -> Found:
    source = formats.open_source(_data(name, folder, {"all": 1.0}))
    samples = [(sample.split, len(sample.captions)) for sample in source.samples if sample.captions]
    for sample in itertools.islice(source.samples, TRIED):
        try:
            sample.image.read()
        except (OSError, ValueError) as error:
            raise UserError(f"{sample.image.where}: {getattr(error, 'strerror', error)}") from error
    if not samples:
        raise UserError("no image has a caption")
    splits = tuple(dict.fromkeys(split for split, _ in samples if split))
    return Found(name, len(samples), sum(captions for _, captions in samples), splits)


def _data(name: str, folder: Path, parts: Mapping[str, float | str]) -> DataSettings:
    return DataSettings(
        format=name,  # type: ignore[arg-type]
        root=str(folder),
        images=None,
        annotations=None,
        parts=parts,
        limit=None,
        evaluation_root=str(folder),
        evaluation={},
    )


def choose_parts(found: Found) -> dict[str, float | str]:
    """Take the set's own train, val and test; else a test and a val of about 1,000 images, of a fifth at most.

    Where the set has a train and a test and no val, this is a share of all that is not its test.
    """
    if set(SPLITS.values()) <= set(found.splits):
        return dict(SPLITS)
    test = min(0.2, max(0.01, round(1000 / found.num_images, 2)))
    val = min(0.1, test)
    if {"train", "test"} <= set(found.splits):
        return {"refine": round(1 - val, 2), "val": val, "eval": "test"}
    return {"refine": round(1 - test - val, 2), "val": val, "eval": test}


def choose_steps(num_pairs: int) -> dict[str, Any]:
    """Choose the largest batch that leaves enough steps, and the rate at which they lead as far as the paper's."""
    batch = next((size for size in BATCHES if num_pairs // size >= FEWEST_STEPS), BATCHES[-1])
    steps = max(1, num_pairs // batch)
    rate = float(f"{min(max(DISTANCE / steps, RATES[0]), RATES[1]):.0e}")
    return {"refine.batch_size": batch, "refine.learning_rate": rate}


def _fit(model: str, pairs: int, captions: int, images: int) -> dict[str, Any]:
    """Choose a micro-batch that the free memory holds, and say what the run will take."""
    from pipeline_lib.core.runtime import pick_device  # torch, two seconds
    from pipeline_lib.setup import costs

    batch = choose_steps(pairs)["refine.batch_size"]
    device = pick_device("auto")
    try:
        cost = costs.cost_of(model)
    except UserError as error:
        print(error)
        return {"refine.micro_batch": None}
    largest = cost.largest_micro_batch(0.8 * costs.free_memory(device))
    micro_batch = None if largest >= batch else largest
    minutes = cost.flops(pairs, captions, images - pairs) / costs.speed(device) / 60
    print(
        f"{model}: {cost.num_weights / 1e6:.0f} M weights; {cost.memory(micro_batch or batch) / 1e9:.1f} GB of memory "
        f"and at least {minutes:.1f} minutes on this machine's {device.type} (calculated from the operations of its "
        "towers and the speed of a matrix product; not measured)"
    )
    return {"refine.micro_batch": micro_batch}


def _changed(params_file: Path, changes: Mapping[str, Any]) -> Any:
    config.read_params(params_file)  # says what is wrong with it
    document = load_document(params_file.read_text(encoding="utf-8"))
    change_values(document, changes, "clip-refine init")
    return document


def _former(params_file: Path) -> Path:
    return params_file.with_suffix(".yaml.former")


def _write(params_file: Path, document: Any, changes: Mapping[str, Any]) -> None:
    change_values(document, changes, "clip-refine init")
    _former(params_file).write_bytes(params_file.read_bytes())
    with artifacts.atomic_open(params_file) as file:
        file.write(dump_document(document).encode())
    check_params(params_file)
