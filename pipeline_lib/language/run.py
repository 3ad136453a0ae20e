"""From `language.source` to data/language: a folder that is loaded back and compared before it gets its name."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.language.sources import read_source
from pipeline_lib.model.features import row_difference
from pipeline_lib.model.language import LanguageModel, Reading, load_language, save_language

log = logging.getLogger(__name__)
TEXTS = ("a photo of a cat", "two red circles on a white ground, and beside them a smaller green one")


def run(settings: LanguageSettings, target: Path) -> dict[str, Any]:
    """Write the language model that `settings` name to `target`, whole or not at all.

    Returns:
        `language` of the manifest: what decides its features, where it comes from, its licence.

    Raises:
        UserError: It cannot be had or read, or its attention cannot be made what is asked.
    """
    reading = _reading(settings)
    source = read_source(settings)
    language = LanguageModel(source.module, source.tokenizer, reading, Path(f"language.source: {settings.source}"))
    with artifacts.output_directory(target, "language") as place:
        save_language(language, place())
        facts = {**check_written(language, place()), "source": source.origin, "license": source.license}
        place(language=facts, parameters={"language": dataclasses.asdict(settings)})
    log.info(
        "%s: %d tokens at most, %s pooling, %s attention, features of width %d",
        *(settings.source, reading.max_length, reading.pooling, "causal" if facts["causal"] else "bidirectional"),
        language.width,
    )
    return facts


def _reading(settings: LanguageSettings) -> Reading:
    if settings.prompt.count("{}") != 1:
        raise UserError(f"language.prompt: {settings.prompt!r} must hold {{}} once, for the text")
    return Reading(settings.attention, settings.pooling, settings.prompt, settings.max_length)


@torch.no_grad()
def check_written(language: LanguageModel, directory: Path) -> dict[str, Any]:
    """Load `directory` back and compare its features with those of `language`, which was saved there; return its facts.

    Raises:
        RuntimeError: They differ, or are not finite: what was written is not what was made.
    """
    written = load_language(directory)
    expected, found = (each.encode(each.tokenize(TEXTS)) for each in (language, written))
    if not (difference := row_difference(found, expected)) <= 1e-6:  # also where it is NaN
        raise RuntimeError(f"{directory}: features of the written model differ by {difference:.2g} (relative)")
    return written.facts()
