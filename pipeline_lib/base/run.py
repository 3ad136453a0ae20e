"""The pre-trained model, from wherever it comes, as one self-contained open_clip directory.

Every later stage reads that directory and nothing else, so it needs no network, and a changed checkpoint is a changed
dependency. One function per source; what was written is loaded back and compared before the directory gets its name.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline_lib import model
from pipeline_lib.base import agreement, checkpoints, demo, hub, hugging_face, kinds, siglip
from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, runtime, work_folders
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.features import row_difference
from pipeline_lib.model.licence import CARD, licence_of
from pipeline_lib.sources import formats
from pipeline_lib.sources.parts import split
from pipeline_lib.sources.settings import DataSettings

log = logging.getLogger(__name__)

_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Made:
    """A model in memory, its tower's and tokenizer's files already in the work folder."""

    clip: model.Clip
    source: Mapping[str, Any]  # where it comes from; no absolute path
    license: str
    trained_on: list[dict[str, str]] = field(default_factory=list)  # key and SHA-256 of each image, where known
    losses: list[float] = field(default_factory=list)  # of each epoch of the demo's heads


def run(
    settings: BaseSettings,
    data: DataSettings,
    target: Path,
    *,
    device: torch.device,
    num_workers: int = 0,
    progress: bool = False,
) -> Made:
    """Write the model that `settings` names to `target`, whole or not at all.

    Args:
        settings: Section `base`.
        data: Section `data`; the demo's heads are trained on its part `base`.
        target: Folder to write.
        device: Where the demo embeds its training images.
        num_workers: Processes that read them.
        progress: Show progress bars.

    Returns:
        What was made; `Made.clip.facts` is the `model` block of `target/manifest.json`.

    Raises:
        UserError: A setting is wrong, there is no room, or the weights cannot be had, read, or fitted to the
            architecture.
        Stopped: A signal asked for it; nothing is left.
    """
    with artifacts.output_directory(target, "base") as place:
        work = place()
        if settings.source == "demo":
            made = _demo(settings, data, work, device=device, num_workers=num_workers, progress=progress)
        else:
            made = _SOURCES[settings.source](settings, work)
        num_bytes = sum(tensor.nbytes for tensor in made.clip.module.state_dict().values())
        work_folders.check_room(target.parent, num_bytes)
        runtime.stop_if_asked()
        model.save(made.clip, work)
        artifacts.write_jsonl(work / artifacts.TRAINED_ON, made.trained_on)
        made.clip.facts = {**model.compute_facts(made.clip), "source": dict(made.source), "license": made.license}
        check_written(made.clip, work)
        runtime.stop_if_asked()
        place(model=made.clip.facts)
    return made


def check_written(clip: model.Clip, directory: Path) -> None:
    """Load `directory` back and compare its features with those of `clip`, which was saved there.

    Raises:
        RuntimeError: They differ, or are not finite: what was written is not what was made.
    """
    written = model.load(directory)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, *clip.image_size), dtype=torch.uint8, generator=generator)
    token_ids = clip.tokenize(["a photo of a cat", "two red circles on white"])
    with torch.no_grad():
        for name, inputs in (("encode_image", pixels), ("encode_text", token_ids)):
            expected, found = (getattr(each, name)(inputs.to(each.device)).float().cpu() for each in (clip, written))
            difference = row_difference(found, expected)
            if not difference <= 1e-5:  # also where it is NaN
                raise RuntimeError(f"{directory}: {name} of the written model differs by {difference:.2g} (relative)")
    differing = [key for key in model.GUARDED if key in clip.facts and clip.facts[key] != written.facts[key]]
    if differing:
        raise RuntimeError(f"{directory}: the written model differs in {', '.join(differing)}")


def _demo(settings: BaseSettings, data: DataSettings, work: Path, **how: Any) -> Made:
    """Join two published towers and train the heads on part `base` of the data; `how` goes to `train_demo`."""
    if settings.demo is None:
        raise UserError("base.demo: missing; `source: demo` needs it; copy the block from the project's params.yaml")
    samples = split(formats.open_source(data).samples, data.parts).get("base", [])
    if not samples:
        raise UserError("data.parts.base: no images to train the demo base's heads on; give it a share, such as 0.45")
    clip, trained_on, losses = demo.train_demo(settings.demo, samples, work, **how)
    source = {
        "kind": "demo",
        "image_tower": demo.IMAGE_PACKAGE,
        "text_tower": demo.TEXT_PACKAGE,
        "num_images": len(trained_on),
    }
    return Made(clip, source, "Apache-2.0 (both towers)", trained_on, losses)


def _open_clip(settings: BaseSettings, work: Path) -> Made:
    """Download a published architecture and tag with open_clip."""
    name, architecture = _architecture(settings)
    tag, record = _tag(settings, name, architecture)
    try:
        weights = model.download(record)
    except UserError as error:
        raise UserError(
            f"base.pretrained: {error}; without network, fetch the file elsewhere and use "
            f"`source: checkpoint` with its path, `model: {name}` and `pretrained: {tag}`"
        ) from error
    clip = _assemble(work, architecture, record, checkpoints.read_checkpoint(weights), f"base.pretrained: `{tag}`")
    source = {"kind": "open_clip", "model": name, "pretrained": tag}
    if not record.get("hf_hub"):
        return Made(clip, source, f"see {record.get('url', '')}")
    repository, revision = record["hf_hub"].rpartition("/")[0], hub.revision_of(weights)
    source |= {"revision": revision} if revision else {}
    return Made(clip, source, hub.licence(repository, revision))


def _hub(settings: BaseSettings, work: Path) -> Made:
    """Fetch a repository of the Hugging Face hub, or find it in the cache: open_clip's layout or transformers'."""
    if not settings.path:
        raise UserError("base.path: missing; `source: hub` needs the name of a model, such as org/name")
    try:
        found = hub.fetch(settings.path)
    except UserError as error:
        raise UserError(f"base.path: {error}") from error
    made = (_open_clip_folder if (found.folder / model.CONFIG).is_file() else _hugging_face)(found.folder, work)
    source = {"kind": "hub", "repository": found.repository, "revision": found.revision}
    source |= {key: value for key, value in made.source.items() if key not in ("kind", "folder")}
    return replace(made, source=source, license=hub.licence(found.repository, found.revision))


def _checkpoint(settings: BaseSettings, work: Path) -> Made:
    """Read a local checkpoint of a named architecture, or a folder of transformers' CLIPModel or SiglipModel."""
    path = _path(settings)
    if path.is_dir():
        return _hugging_face(path, work)
    name, architecture = _architecture(settings)
    record = _tag(settings, name, architecture)[1] if settings.pretrained else _only_preprocess(name)
    origin, remedy = f"base.path: {path}: weights of base.model `{name}`", "; check base.model"
    if path.suffix == ".npz":
        model.write_config(work, architecture, record)
        clip = model.create(work)
        model.load_big_vision(clip, path, origin, remedy)
    else:
        index = checkpoints.shard_index(path) or path
        clip = _assemble(work, architecture, record, checkpoints.read(index), origin, remedy)
    return Made(clip, {"kind": "checkpoint", "file": path.name, "model": name}, "that of the checkpoint")


def _hugging_face(folder: Path, work: Path) -> Made:
    if (folder / model.CONFIG).is_file():
        raise UserError(f"base.source: {folder} is an open_clip directory; use `source: local_dir`")
    if not (folder / model.TOWER_CONFIG).is_file():
        raise UserError(
            f"base.path: {folder} is no Hugging Face CLIPModel or SiglipModel folder (no {model.TOWER_CONFIG}); "
            "give the path of the weights file itself, and its architecture as base.model"
        )
    try:
        converted = hugging_face.read_folder(folder)
        assumed = [] if converted.processor else ["preprocessing"]
        if hugging_face.has_tokenizer(folder):
            model.copy_files(folder, work)
            converted.model_config["text_cfg"]["hf_tokenizer_name"] = folder.name
        elif converted.model_config["text_cfg"]["vocab_size"] == len(model.standard_vocabulary()):
            assumed.append("tokenizer")
        else:
            raise UserError(
                f"{folder}: no tokenizer.json, and its vocabulary is not the standard CLIP one; copy it there"
            )
        if assumed and converted.kind is not kinds.CLIP:
            raise UserError(f"{folder}: no files of its {' and '.join(assumed)}; copy them there")
        if converted.image_tower:
            artifacts.write_json(work / model.TOWER_CONFIG, converted.image_tower)
        clip = _assemble(work, converted.model_config, converted.preprocess, converted.tensors, str(folder))
        _check_agreement(clip, converted, folder)
    except UserError as error:
        raise UserError(f"base.path: {error}") from error
    if assumed:
        log.warning("%s: no files of its %s, so OpenAI's is used; copy them there", folder, " and ".join(assumed))
    source = {"kind": "hugging_face", "folder": folder.name, **({"assumed_of_openai": assumed} if assumed else {})}
    return Made(clip, source, _licence_beside(folder))


def _check_agreement(clip: model.Clip, converted: hugging_face.Converted, folder: Path) -> None:
    """Compare the converted model with transformers' own, as far as the folder says what its own is."""
    tokenizer = agreement.read_tokenizer(folder) if hugging_face.has_tokenizer(folder) else None
    if tokenizer and converted.kind is kinds.SIGLIP:
        siglip.refuse_tokenizer(tokenizer, clip.context_length, folder)
    if converted.processor:
        agreement.check_images(clip, converted.processor, folder)
    if tokenizer:
        agreement.check_texts(clip, tokenizer, folder)
    reference = agreement.make_reference(converted.config, converted.theirs)
    agreement.check_features(clip, reference, converted.processor, tokenizer, folder)


def _local_dir(settings: BaseSettings, work: Path) -> Made:
    """Read an open_clip directory of one's own."""
    folder = _path(settings)
    if not (folder / model.CONFIG).is_file():
        raise UserError(f"base.path: {folder} has no {model.CONFIG}; for other checkpoints use `source: checkpoint`")
    return _open_clip_folder(folder, work)


def _open_clip_folder(folder: Path, work: Path) -> Made:
    """Read an open_clip directory, checked against its own manifest where it has one."""
    weights = model.weights_file(folder)
    if weights is None:
        raise UserError(f"base.path: {folder} holds no weights")
    found = model.read_config(folder)
    tensors = checkpoints.read(checkpoints.shard_index(weights) or weights)
    model.copy_files(folder, work)
    clip = _assemble(work, found["model_cfg"], found.get("preprocess_cfg") or {}, tensors, str(folder))
    if hugging_face.is_named_so(tensors, str(folder)) and (folder / model.TOWER_CONFIG).is_file():
        reference = agreement.make_reference(hugging_face.read_config(folder), tensors)
        named = "hf_tokenizer_name" in found["model_cfg"]["text_cfg"]
        agreement.check_features(clip, reference, None, agreement.read_tokenizer(folder) if named else None, folder)
    recorded = model.recorded_facts(folder)
    model.compare_facts(folder, model.compute_facts(clip), recorded)
    before = folder / artifacts.TRAINED_ON
    trained_on = list(artifacts.read_jsonl(before)) if before.is_file() else []
    source = {"kind": "local_dir", "folder": folder.name, "source": recorded.get("source")}
    return Made(clip, source, recorded.get("license") or _licence_beside(folder), trained_on)


def _licence_beside(folder: Path) -> str:
    return licence_of(folder / CARD) or "that of the checkpoint"


_SOURCES = {"open_clip": _open_clip, "hub": _hub, "checkpoint": _checkpoint, "local_dir": _local_dir}


def _assemble(
    work: Path,
    model_config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    origin: str,
    remedy: str = "",
) -> model.Clip:
    """Make the model in memory, with its configuration and the files it needs in `work`.

    The tensors may go by open_clip's names or by those of transformers' CLIPModel.
    """
    theirs = hugging_face.is_named_so(tensors, origin)
    model.write_config(work, model_config, preprocess)
    clip = model.create(work)
    named = hugging_face.convert_weights(tensors, origin) if theirs else tensors
    model.load_weights(clip, named, origin, remedy)
    return clip


def _path(settings: BaseSettings) -> Path:
    if not settings.path:
        raise UserError(f"base.path: missing; `source: {settings.source}` needs the path of the checkpoint")
    path = Path(os.path.expanduser(settings.path))
    if not os.path.exists(path):
        raise UserError(f"base.path: {path}: no such file or folder")
    return path


def _architecture(settings: BaseSettings) -> tuple[str, dict[str, Any]]:
    """Return open_clip's name (`/` as `-`) and configuration of `base.model`."""
    if not settings.model:
        raise UserError(f"base.model: missing; `source: {settings.source}` needs an open_clip architecture name")
    if ":" in settings.model:
        raise UserError(
            f"base.model: `{settings.model}` names a place, not an architecture; write it as base.path, with "
            "`source: hub` or, for a folder, `local_dir`"
        )
    name = settings.model.replace("/", "-")
    found = model.architecture(name)
    if found is None:
        raise UserError(f"base.model: open_clip knows no `{settings.model}`{_close(name, model.architectures())}")
    return name, found


def _tag(settings: BaseSettings, name: str, architecture: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the tag `base.pretrained` and open_clip's record of it.

    open_clip itself only warns where a tag's activation is not the architecture's, and builds a model that gives wrong
    features.

    Raises:
        UserError: The tag is unknown, or its weights were trained with the other activation.
    """
    tags = model.pretrained_tags(name)
    if not settings.pretrained:
        raise UserError(f"base.pretrained: missing; `{name}` has {', '.join(tags) or 'no published weights'}")
    tag = settings.pretrained.lower().replace("-", "_")  # as open_clip does
    plain, quick = name.removesuffix("-quickgelu"), f"{name.removesuffix('-quickgelu')}-quickgelu"
    if tag not in tags:
        if name == quick and tag in model.pretrained_tags(plain):
            raise UserError(f"base.model: tag `{tag}` was not trained with QuickGELU; use `{plain}`")
        raise UserError(f"base.pretrained: `{name}` has no tag `{settings.pretrained}`{_close(tag, tags)}")
    if tags[tag].get("quick_gelu") and not architecture.get("quick_gelu"):
        raise UserError(f"base.model: the weights of tag `{tag}` were trained with QuickGELU; use `{quick}`")
    return tag, tags[tag]


def _only_preprocess(name: str) -> dict[str, Any]:
    """Return the preprocessing that all published weights of an architecture share; {} where there are none."""
    found = [{key: tag[key] for key in _PREPROCESS_KEYS} for tag in model.pretrained_tags(name).values()]
    if any(each != found[0] for each in found):
        raise UserError(
            f"base.pretrained: missing; published weights of `{name}` differ in their preprocessing, so name the tag "
            f"that yours goes by: {', '.join(model.pretrained_tags(name))}"
        )
    return found[0] if found else {}


def _close(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(f'`{each}`' for each in close)}?"
    return f"; known: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
