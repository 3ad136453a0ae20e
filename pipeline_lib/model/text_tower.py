"""A joined model as an ordinary one of open_clip, where that has the language model among its own text towers.

The adapter becomes the projection, and the language model's weights stand beside those of the image tower. The features
are the same; only some texts get other tokens, since open_clip mends them before it reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts
from pipeline_lib.model.clip import Clip
from pipeline_lib.model.files import CONFIG, TOWER_CONFIG, WEIGHTS, copy_files, is_described, save_weights
from pipeline_lib.model.folder import create, load_weights
from pipeline_lib.model.joined import ADAPTER, LANGUAGE, TEXT_SIDE, JoinedClip
from pipeline_lib.model.language import PADDING
from pipeline_lib.model.licence import copy_licences

KINDS = ("bert", "roberta", "xlm-roberta")  # open_clip's text towers of one stack


def foreign_text_side(clip: JoinedClip) -> str:
    """Say what of the text side open_clip's text towers do not have; empty where one of them is the same."""
    language, adapter = clip.language(), clip.config[TEXT_SIDE]["adapter"]
    reading, tokenizer = language.reading, language.tokenizer
    config: Any = language.module.config
    padding = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id)
    if config.model_type not in KINDS:
        return f"a language model of type `{config.model_type}`"
    if is_described(clip.config["model_cfg"]["vision_cfg"], clip.directory):
        return f"beside it an image tower that {TOWER_CONFIG} describes, where its own configuration would be"
    if language.attention.causal_by_itself:
        return "a causal language model"
    if adapter is None or adapter["depth"]:
        return "an adapter that is more than one matrix"
    if (reading.pooling, reading.prompt) != ("mean", "{}"):
        return f"pooling `{reading.pooling}` with the prompt {reading.prompt!r}"
    if config.pad_token_id is None or padding != ("right", "right", config.pad_token_id):
        return "a tokenizer that does not pad and truncate on the right with the model's own token"
    return "the captioner" if "multimodal_cfg" in clip.config["model_cfg"] else ""


def with_text_tower(clip: JoinedClip, directory: Path) -> Clip:
    """Write `clip` to `directory` as an ordinary open_clip folder, and return the model that is there.

    Args:
        clip: A model of which `foreign_text_side` has nothing to say.
        directory: Where nothing of a model lies yet.
    """
    name = LANGUAGE  # no repository of the hub is called so: never another model in its place
    text_config = {
        "hf_model_name": name,
        "hf_tokenizer_name": name,
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": clip.context_length,
    }
    model_config = {**clip.config["model_cfg"], "custom_text": True, "text_cfg": text_config}
    others = {key: value for key, value in clip.config.items() if key != TEXT_SIDE}
    directory.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(directory / CONFIG, {**others, "model_cfg": model_config})
    copy_files(clip.language_directory, directory)
    copy_licences(clip.language_directory, directory)
    made = create(directory)
    tensors = clip.module.state_dict()
    tensors["text.proj.weight"] = tensors.pop(f"{ADAPTER}proj.weight")
    tower = clip.language().module.state_dict()
    load_weights(made, tensors | {f"text.transformer.{name}": tower[name] for name in tower}, str(clip.directory))
    save_weights(made.module.state_dict(), directory / WEIGHTS)
    return made


def read_otherwise(clip: JoinedClip, made: Clip, texts: list[str]) -> list[str]:
    """Return those of `texts` of which `made`, from `with_text_tower`, sees other tokens than `clip`."""
    if not texts:
        return []
    config: Any = clip.language().module.config
    found = made.tokenize(texts)
    found = found.masked_fill(found == config.pad_token_id, PADDING)  # also one that a text itself holds
    differing = (found != clip.tokenize(texts)).any(1).tolist()
    return [text for text, other in zip(texts, differing, strict=True) if other]
