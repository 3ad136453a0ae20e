"""From images of your own to a model in other tools, in minutes on a CPU: `python -m examples.own_images`.

Run `make run` first: its base model, `data/base`, is what is refined here (`--base` names another open_clip folder).
Everything is written to `out/own_images`, beside the project's own results and not among its runs. The sections below
are the steps that you would take; replace the first by your own pictures.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline_lib import export, terminal
from pipeline_lib.base.kinds import kind_of
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import card, hub, transformers_folder
from pipeline_lib.model import open_folder
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.settings import DataSettings

PROJECT = Path(__file__).parents[1]
PARAMS = Path("params.yaml")
SIDE, TOP = 96, 5  # pixels of an image that a search shows, and how many it shows

# ---- 1. Images and captions: a folder with metadata.csv (file_name,text), as Hugging Face's `imagefolder` has it ----


def make_images(folder: Path, number: int) -> None:
    """Draw scenes of the default's kind that its base was not trained on, and write their captions, one a row."""
    data = config.load(PROJECT / PARAMS, DataSettings)
    scenes = open_source(replace(data, root=str(PROJECT / data.root)))
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        unseen = (sample for sample in scenes.samples if sample.split == "eval")
        for row, sample in enumerate(islice(unseen, number)):
            (folder / f"{row:04d}.png").write_bytes(sample.image.read())
            table.writerows([f"{row:04d}.png", caption] for caption in sample.captions)


# ---- 2. params.yaml: the project's own, with other data and another base ----


def write_params(base: Path) -> None:
    """Write params.yaml for the images here; JSON is YAML too."""
    params = config.read_params(PROJECT / PARAMS)
    params["data"] |= {"format": "hugging_face", "root": "images", "evaluation_root": "images", "evaluation": {}}
    params["data"] |= {"parts": {"refine": 0.6, "val": 0.15, "eval": 0.25}}
    params["base"] = {"source": "local_dir", "model": None, "pretrained": None, "path": str(base)}
    params["refine"] |= {"batch_size": 32, "learning_rate": 1e-4}
    params["evaluate"] |= {"linear_probe": False, "few_shot": None, "wise_ft": [], "bootstrap_samples": 200}
    params["tracking"]["mode"] = "disabled"
    PARAMS.write_text(json.dumps(params, indent=2))


# ---- 3. The stages: here one after the other; in a project of yours `make run` or `dvc repro` ----


def run_stages() -> str:
    """Run the pipeline in the current folder; return the verdict and the table."""
    for stage in ("base", "shard", "cache_teacher", "refine", "evaluate", "report"):
        importlib.import_module(f"stages.{stage}").main(PARAMS)
    return report.terminal_table(read_inputs(PARAMS))


# ---- 4. Search: the images that are nearest to a sentence, by the base and by the refined model ----


def search(sentence: str, images: list[Path], picture: Path) -> dict[str, list[str]]:
    """Rank images by each model, draw the best side by side, and return their names."""
    found: dict[str, list[str]] = {}
    sheet = Image.new("RGB", (TOP * SIDE, 2 * SIDE), "grey")
    for row, name in enumerate(("base", "refined")):
        model, preprocess, tokenizer = open_folder(Path("data", name))
        pixels = torch.stack([preprocess(Image.open(path)) for path in images])
        scores = (
            model.encode_image(pixels, normalize=True) @ model.encode_text(tokenizer([sentence]), normalize=True)[0]
        )
        best = [images[place] for place in scores.topk(TOP).indices.tolist()]
        found[name] = [path.name for path in best]
        for column, path in enumerate(best):
            sheet.paste(Image.open(path).convert("RGB").resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    sheet.save(picture)
    return found


# ---- 5. Export: for transformers where it can hold the model, else for open_clip alone ----


def write_export(target: Path) -> tuple[str, Path, str]:
    """Export the refined model; return the library that loads it, the folder, and the lines on its card that do so."""
    subject = export.open_subject(PARAMS)
    try:
        folder = target / "transformers"
        transformers_folder.write_transformers_folder(subject, folder, force=True)
    except UserError as refusal:
        print(refusal)
        folder = target / "open_clip"
        hub.write_hub_folder(subject, folder, force=True)
        return "open_clip", folder, card.loading(subject.clip, str(folder))
    return "transformers", folder, card.use_in_transformers(str(folder), kind_of(subject.clip))


# ---- 6. The export in its library alone ----


def classify(library: str, lines: str, image: Image.Image, texts: list[str]) -> list[float]:
    """Return the probabilities of texts for an image, by the lines on the export's own card."""
    given: dict[str, Any] = {"image": image, "texts": texts}
    exec(lines, given)  # noqa: S102
    if library == "transformers":
        return given["probabilities"][0].tolist()
    model = given["model"].eval()
    with torch.no_grad():
        features = model.encode_image(given["preprocess"](image)[None], normalize=True)
        scores = features @ model.encode_text(given["tokenizer"](texts), normalize=True).T
        return (model.logit_scale.exp() * scores).softmax(dim=-1)[0].tolist()


def main(base: Path, folder: Path, number: int) -> None:
    """Do all of it in `folder`, which must be new."""
    if not (base / "open_clip_config.json").is_file():
        raise UserError(f"{base}: no model there; run `make run` first, or name an open_clip folder by --base")
    if folder.exists():
        raise UserError(f"{folder}: is there already; delete it, or name another folder by --to")
    base = base.resolve()
    make_images(folder / "images", number)
    os.chdir(folder)
    write_params(base)
    print(f"\n{run_stages()}")

    index = [json.loads(line) for path in sorted(Path("data/shards/eval").glob("*.jsonl")) for line in path.open()]
    images = [Path("images", f"{entry['key']}.png") for entry in index]
    sentence = index[0]["captions"][0]
    print(f"\nSearched among {len(images)} images: {sentence} ({images[0].name})")
    for name, best in search(sentence, images, Path("search.png")).items():
        print(f"    {name:8} {'  '.join(best)}")
    print(f"    {folder / 'search.png'}: above the base's, below the refined model's\n")

    library, exported, lines = write_export(Path("export"))
    texts = [sentence, *(entry["captions"][0] for entry in index[1:3])]
    print(f"{folder / exported}, loaded by {library} alone, of {images[0].name}:")
    for text, share in zip(texts, classify(library, lines, Image.open(images[0]), texts), strict=True):
        print(f"    {100 * share:5.1f} %  {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m examples.own_images", description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, default=PROJECT / "data/base", help="an open_clip folder")
    parser.add_argument("--to", type=Path, default=Path("out/own_images"), help="a new folder (default: %(default)s)")
    parser.add_argument("--images", type=int, default=600, help="how many to draw (default: %(default)s)")
    options = parser.parse_args()
    with terminal.one_line_errors():
        main(options.base, options.to, options.images)
