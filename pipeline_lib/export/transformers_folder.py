"""The model as a CLIPModel or SiglipModel folder of transformers, read back there and compared before it gets its name.

    config.json, model.safetensors            the model
    preprocessor_config.json                  its image processor
    tokenizer.json and others                 its tokenizer: the folder's own, or OpenAI's from open_clip's merges
    README.md, manifest.json                  card; digests, provenance and the differences that were found

Only OpenAI's kind of CLIP and SigLIP's can be one (`model.describe_native` and `model.describe_siglip` say which part
is of another kind). The way back is `base.source: checkpoint`; `base.names` has the tables of tensors for both.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import re
import shutil
import string
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_lib import model
from pipeline_lib.base import agreement, names, processors
from pipeline_lib.base.checkpoints import Tensors
from pipeline_lib.base.kinds import CLIP, SIGLIP, Kind, kind_of
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.export import card
from pipeline_lib.export.hub import CARD, check_repository
from pipeline_lib.export.subject import STAGE, Subject, refuse_to_overwrite
from pipeline_lib.model.preprocess import CONVENTIONS

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"
INSTEAD = "use `python -m pipeline_lib.export hub`, whose card says how it loads"
START, END = "<|startoftext|>", "<|endoftext|>"


class Written(NamedTuple):
    """What was found when the folder was read back."""

    difference: float  # the largest of a row of features, relative
    captions: int  # of the evaluated sets that were tokenized
    other_captions: list[str]  # those that transformers' tokenizer reads otherwise


def require() -> None:
    """Check that the optional package is there.

    Raises:
        UserError: It is not.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("export transformers: transformers not installed; run `pip install -e '.[demo]'`")


def write_transformers_folder(subject: Subject, target: Path, *, repository: str = "", force: bool = False) -> Written:
    """Write and check the folder, whole or not at all.

    Raises:
        UserError: transformers cannot hold the model, its features would be others there, or `target` is not to be
            overwritten.
    """
    require()
    check_repository(repository)
    refuse_to_overwrite(target, force=force)
    with artifacts.output_directory(target, STAGE) as place:
        write_model(subject.clip, place())
        written = _read_back(subject, place())
        lines = card.render_card(subject, target.resolve().name, repository, library="transformers")
        artifacts.write_text(place(CARD), lines)
        facts = {"difference": written.difference, "captions": written.captions}
        place(**facts, other_captions=len(written.other_captions), model=dict(subject.facts), origin=subject.origin)
    return written


def write_model(clip: model.Clip, folder: Path) -> None:
    """Write configuration, weights, image processor and tokenizer to `folder`.

    Raises:
        UserError: transformers cannot hold the model; names the part.
    """
    kind = kind_of(clip)
    described = model.describe_siglip(clip) if kind is SIGLIP else model.describe_native(clip)
    if isinstance(described, str):
        raise _refusal(kind, described)
    try:
        settings = processors.processor_settings(clip.preprocess.config, kind)
    except UserError as error:
        raise _refusal(kind, f"the preprocessing ({error})") from None
    model.save_weights(_tensors(clip, kind), folder / WEIGHTS)
    config = _siglip_config(described, clip) if isinstance(described, model.Siglip) else _config(described)
    artifacts.write_json(folder / CONFIG, config)
    artifacts.write_json(folder / PROCESSOR, settings)
    _write_tokenizer(clip, folder)


def check_model(clip: model.Clip, folder: Path) -> float:
    """Load `folder` with transformers; compare pixels, token ids, features and scale with those of `clip`.

    Returns:
        The largest relative difference of a row of features.

    Raises:
        UserError: They differ.
        RuntimeError: transformers did not take every tensor.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = kind_of(clip)
    reference, loading = getattr(transformers, kind.model).from_pretrained(folder, output_loading_info=True)
    if any(loading.values()):
        raise RuntimeError(f"{folder}: not read whole by transformers: {loading}")
    tokenizer = agreement.read_tokenizer(folder)
    processor, _ = processors.read_processor(folder, clip.image_size[0], kind)
    remedy = f"nothing was written; {INSTEAD}"
    agreement.check_images(clip, processor, folder, remedy)
    agreement.check_texts(clip, tokenizer, folder, remedy)
    return agreement.check_features(clip, reference.float().eval(), processor, tokenizer, folder, remedy)


def _read_back(subject: Subject, folder: Path) -> Written:
    difference, tokenizer = check_model(subject.clip, folder), agreement.read_tokenizer(folder)
    captions = subject.captions
    differing = agreement.different_ids(subject.clip, tokenizer, captions).any(dim=1).tolist() if captions else []
    return Written(difference, len(captions), list(itertools.compress(captions, differing)))


def _tensors(clip: model.Clip, kind: Kind) -> Tensors:
    own = clip.module.state_dict()
    if kind is CLIP:  # its text tower may stand alone
        own = {name.removeprefix("text."): tensor for name, tensor in own.items()}
    try:
        tensors, left = names.to_transformers(own, kind.table)
    except KeyError as error:
        raise _refusal(kind, f"a model without {error}") from None
    if left:
        raise _refusal(kind, f"the tensor `{next(iter(left))}`")
    shape = () if kind is CLIP else (1,)
    return tensors | {name: tensors[name].reshape(shape) for name in model.SCALARS if name in tensors}


def _refusal(kind: Kind, part: str) -> UserError:
    return UserError(f"export transformers: a {kind.model} cannot hold {part}; {INSTEAD}")


def _config(native: model.Native) -> dict[str, Any]:
    """Return config.json: sizes, activations, norms and pooling of both towers."""
    ids = model.standard_vocabulary()
    standard = native.vocab_size == len(ids)
    # A text is pooled at its first `eos_token_id`; the number 2 means at its largest id.
    eos = native.eos_id if native.eos_id is not None else ids[END] if standard else 2
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": native.embed_dim,
        "dtype": "float32",
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": native.image_size,
            "patch_size": native.patch_size,
            "projection_dim": native.embed_dim,
            **_tower(native.image),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": native.vocab_size,
            "max_position_embeddings": native.context_length,
            "eos_token_id": eos,
            **({"bos_token_id": ids[START], "pad_token_id": ids[END]} if standard else {}),
            "projection_dim": native.embed_dim,
            **_tower(native.text),
        },
    }


def _siglip_config(found: model.Siglip, clip: model.Clip) -> dict[str, Any]:
    """Return config.json of a SiglipModel."""
    tokenizer = getattr(clip.tokenizer, "tokenizer", None)
    ends = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id", None) for key in ("bos", "eos", "pad")}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": found.image_size,
            "patch_size": found.patch_size,
            **_tower(found.image),
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": found.vocab_size,
            "max_position_embeddings": found.context_length,
            "projection_size": found.embed_dim,
            **ends,
            **_tower(found.text),
        },
    }


def _tower(tower: model.Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.eps,
    }


def _write_tokenizer(clip: model.Clip, work: Path) -> None:
    """Copy the model's own tokenizer of transformers, or write OpenAI's as open_clip has it."""
    if clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        for name in model.TOKENIZER_FILES:
            if (clip.directory / name).is_file():
                shutil.copyfile(clip.directory / name, work / name)
        settings = artifacts.read_json(work / TOKENIZER) if (work / TOKENIZER).is_file() else {}
        if kind_of(clip) is SIGLIP:
            settings |= {"model_input_names": ["input_ids"], "model_max_length": clip.context_length}
            settings |= _canonicalizing(clip, work)
        limit = min(settings.get("model_max_length") or clip.context_length, clip.context_length)
        artifacts.write_json(work / TOKENIZER, settings | {"model_max_length": limit})
        return
    merges = [" ".join(pair) for pair in model.standard_merges()]
    artifacts.write_json(work / "vocab.json", model.standard_vocabulary())
    artifacts.write_text(work / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": clip.context_length, **special}
    artifacts.write_json(work / TOKENIZER, about)
    agreement.read_tokenizer(work).backend_tokenizer.save(str(work / "tokenizer.json"))


def _canonicalizing(clip: model.Clip, work: Path) -> dict[str, Any]:
    """Let tokenizer.json do itself what open_clip does to texts before SigLIP's tokenizer; return what that changes.

    Returns:
        Entries of tokenizer_config.json: a class that takes tokenizer.json as it is.
    """
    options = clip.config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
    if options.get("clean") != "canonicalize" or CONVENTIONS in clip.preprocess.config:
        return {}
    tokenizer = copy.deepcopy(getattr(clip.tokenizer.tokenizer, "backend_tokenizer", None))
    if tokenizer is None:
        raise _refusal(SIGLIP, "a tokenizer that is none of the package tokenizers, for which open_clip cleans texts")
    from tokenizers import Regex, normalizers

    punctuation = Regex(f"[{re.escape(string.punctuation)}]")
    steps = [("_", " "), (punctuation, ""), (Regex(r"\s+"), " ")]
    before = [*itertools.starmap(normalizers.Replace, steps), normalizers.Strip(), normalizers.Lowercase()]
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*before, *own])
    tokenizer.save(str(work / "tokenizer.json"))
    return {"tokenizer_class": "PreTrainedTokenizerFast"}
