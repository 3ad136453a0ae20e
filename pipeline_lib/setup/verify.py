"""Say everything that is wrong with params.yaml, the data that it names included: `clip-refine check`.

What needs no data is said first and at once, before torch is loaded; then the sets are opened (no image is), their
samples counted by part; then the recipe's block is read. A stage says the first mistake only.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.core import config
from pipeline_lib.core.errors import Mistakes, UserError
from pipeline_lib.params.check import find_mistakes
from pipeline_lib.params.sections import RECIPES
from pipeline_lib.sources.settings import DataSettings

MODEL_FILES = {"local_dir": "a folder that open_clip can load", "checkpoint": "your weights"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every mistake, then what each part holds.

    Raises:
        UserError: There are mistakes.
    """
    parser = argparse.ArgumentParser(
        prog="clip-refine check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    parser.add_argument("--no-data", action="store_true", help="do not open the sets")
    options = parser.parse_args(arguments)
    printed, facts = 0, list[str]()
    sections, mistakes = find_mistakes(options.params)
    for look in (_model, *([] if options.no_data else [_data]), _recipe):
        printed = _print_from(mistakes, printed)
        facts += look(sections, options.params, mistakes)
    _print_from(mistakes, printed)
    print("\n".join(facts))
    if mistakes.sentences:
        raise UserError(f"{options.params}: {len(mistakes.sentences)} to mend")
    print(f"{options.params}: nothing to mend; `dvc repro` runs it")


def _print_from(mistakes: Mistakes, printed: int) -> int:
    for sentence in mistakes.sentences[printed:]:
        print(f"- {sentence}", flush=True)
    return len(mistakes.sentences)


def _model(sections: Mapping[str, Any], params_file: Path, mistakes: Mistakes) -> list[str]:
    base = sections.get("base")
    if base is not None and base.source in MODEL_FILES and not os.path.exists(os.path.expanduser(base.path or ".")):
        mistakes.sentences.append(
            f"{params_file}: base.path: {base.path} does not exist; name {MODEL_FILES[base.source]}"
        )
    return []


def _recipe(sections: Mapping[str, Any], params_file: Path, mistakes: Mistakes) -> list[str]:
    name = (config.read_params(params_file).get("refine") or {}).get("recipe")
    if isinstance(name, str):
        from pipeline_lib.refine import recipes  # torch, two seconds

        with mistakes:
            recipes.make_recipe(name, config.raw_section(params_file, RECIPES) or {})
    return []


def _data(sections: Mapping[str, Any], params_file: Path, mistakes: Mistakes) -> list[str]:
    """Open every set; say how many images and captions each part holds, and how many steps that makes."""
    data, refine = sections.get("data"), sections.get("refine")
    if data is None:
        return []
    counted = dict[str, Counter[str]]()
    with mistakes:
        counted |= count_parts(data)
    for part in [part for part, counts in counted.items() if not counts["images"]]:
        mistakes.sentences.append(f"{params_file}: data.parts.{part}: holds no sample; give it a larger share")
    if refine is not None and "refine" in counted:
        pairs = counted["refine"]["images with captions"]
        if 0 < pairs < refine.batch_size and refine.last_batch == "drop":
            mistakes.sentences.append(
                f"{params_file}: refine.batch_size: {refine.batch_size}, but part `refine` has {pairs} images with "
                "captions, which is not one step; lower it"
            )
    facts = [f"part {part}: {_listed(counts)}" for part, counts in counted.items()]
    for name in data.evaluation:
        with mistakes:
            facts.append(f"set {name}: {_listed(_count_set(data, name))}")
    return facts


def count_parts(data: DataSettings) -> dict[str, Counter[str]]:
    """Count images and captions of each part of the set, as its files describe them; no image is opened.

    Raises:
        UserError: The set cannot be opened, or its parts do not fit it.
    """
    from pipeline_lib.sources import formats
    from pipeline_lib.sources.parts import Splitter, checked

    source = formats.open_source(data)
    splitter = Splitter(data.parts, source.samples.folder, splits=source.samples.splits)
    counted: dict[str, Counter[str]] = {part: Counter() for part in splitter.parts}
    for sample in checked(source.samples, splitter, whole=source.samples.whole):
        if (part := splitter(sample)) is not None:
            counted[part].update({"images": 1, "images with captions": bool(sample.captions)})
            counted[part]["captions"] += len(sample.captions)
    return counted


def _count_set(data: DataSettings, name: str) -> Counter[str]:
    from pipeline_lib.sources import formats

    source = formats.open_evaluation_set(data, name)
    counts = Counter[str]()
    for sample in source.samples:
        counts.update({"images": 1, "captions": len(sample.captions), "labels": len(sample.labels)})
    return counts + Counter(choices=len(source.choices))


def _listed(counts: Mapping[str, int]) -> str:
    kinds = ("images", "captions", "labels", "choices")
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds if counts.get(kind)) or "no sample"
