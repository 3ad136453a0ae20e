"""What decides a model's features: weights, configuration, preprocessing, activation, tokenizer, each by its digest.

A folder with a manifest is compared with what that recorded, so that no stage runs a model whose parts do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip.tokenizer
import open_clip.transformer

from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.clip import Clip
from pipeline_lib.model.files import TOKENIZER_FILES, TOWER_CONFIG, is_described, weights_digest
from pipeline_lib.model.joined import LANGUAGE, TEXT_SIDE, JoinedClip
from pipeline_lib.model.preprocess import CONVENTIONS

GUARDED = ("config_digest", "preprocess", "quick_gelu", "tokenizer_digest", "weights_digest")


def compute_facts(clip: Clip) -> dict[str, Any]:
    """Compute from the loaded weights and files what decides the model's features, as JSON values."""
    model_config = clip.config["model_cfg"]
    tower = clip.directory / TOWER_CONFIG
    language = clip.language_facts if isinstance(clip, JoinedClip) else None
    settings = {"model_cfg": model_config, "tower": artifacts.read_json(tower) if tower.is_file() else None}
    if language:
        described = is_described(model_config["vision_cfg"], clip.directory)
        settings |= {"tower": clip.config[TEXT_SIDE], **({"image_tower": settings["tower"]} if described else {})}
    size = clip.image_size
    return {
        "weights_digest": weights_digest(clip.module.state_dict()),
        "config_digest": artifacts.digest(settings),
        "preprocess": {**clip.preprocess.config, "size": list(size)},
        "tokenizer_digest": language["tokenizer_digest"] if language else _tokenizer_digest(clip),
        "quick_gelu": any(isinstance(m, open_clip.transformer.QuickGELU) for m in clip.module.modules()),
        "embed_dim": clip.embed_dim,
        "context_length": clip.context_length,
        "image_size": list(size),
        "logit_scale": clip.logit_scale.item(),
        **({LANGUAGE: {**language, **clip.config[TEXT_SIDE]["origin"]}} if language else {}),
    }


def _tokenizer_digest(clip: Clip) -> str:
    """Return the hex SHA-256 of what decides token ids: the tokenizer's files, or open_clip's own vocabulary."""
    text_config = clip.config["model_cfg"]["text_cfg"]
    settings = {key: text_config.get(key) for key in ("tokenizer_mode", "tokenizer_kwargs")}
    if text_config.get("hf_tokenizer_name"):
        paths = [clip.directory / name for name in TOKENIZER_FILES]
        settings |= {key: clip.preprocess.config[key] for key in (CONVENTIONS,) if key in clip.preprocess.config}
    else:
        paths = [Path(open_clip.tokenizer.default_bpe())]
    files = {path.name: artifacts.sha256_file(path) for path in paths if path.is_file()}
    return artifacts.digest({"files": files, "context_length": clip.context_length, **settings})


def recorded_facts(directory: Path) -> dict[str, Any]:
    """Return the `model` block of the directory's manifest; empty where there is no manifest."""
    if not (directory / artifacts.MANIFEST).is_file():
        return {}
    return artifacts.read_manifest(directory).get("model", {})


def compare_facts(directory: Path, found: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse a model whose weights, configuration, preprocessing, activation or tokenizer are not the recorded ones.

    Raises:
        UserError: They differ; says in what.
    """
    differing = [key for key in GUARDED if key in recorded and found[key] != recorded[key]]
    if differing:
        what = "; ".join(f"{key} is {_short(found[key])}, recorded {_short(recorded[key])}" for key in differing)
        raise UserError(
            f"{directory}: not the model that its {artifacts.MANIFEST} describes: {what}; "
            "the folder was changed after it was written, run `dvc repro -f` on the stage that writes it"
        )


def _short(value: Any) -> str:
    text = artifacts.canonical_json(value).strip('"')
    return text if len(text) <= 160 else f"{text[:160]}…"
