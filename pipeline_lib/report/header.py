"""What stands below the title: base model, data, recipe, evaluated sets and seed, each in a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.report.inputs import ReportInputs
from pipeline_lib.report.page import Fact


def run_facts(inputs: ReportInputs) -> tuple[Fact, ...]:
    """Return what was run."""
    refine, pairs = inputs.parameters["refine"], inputs.manifests["shard"]["numbers"]["refine"]["num_samples"]
    epochs = "1 epoch" if refine["epochs"] == 1 else f"{refine['epochs']} epochs"
    return (
        Fact("base model", origin(inputs.manifests["base"]["model"]["source"])),
        *_text_side(inputs),
        Fact("data", f"{data_place(inputs.parameters['data'])}; {pairs:,} images with captions to train on"),
        Fact(
            "recipe",
            f"`{refine['recipe']}`, learning rate {refine['learning_rate']:g}, {len(inputs.history):,} steps of "
            f"{refine['batch_size']:,} pairs ({epochs})",
        ),
        Fact("evaluated on", f"{name_sets(inputs.refined.sets)}; to choose on: {name_sets(inputs.refined.selection)}"),
        Fact("seed", str(refine["seed"])),
    )


def _text_side(inputs: ReportInputs) -> tuple[Fact, ...]:
    """Say what reads the refined model's texts, where it is not the base's text tower."""
    if not inputs.language:
        return ()
    found, adapter = inputs.language, inputs.parameters["refine"]["adapter"]
    layers = f"{adapter['depth']} blocks" if adapter["depth"] else "a linear map"
    read = (
        f"{'causal' if found['causal'] else 'bidirectional'}, {found['pooling']} pooling, {found['max_length']} tokens"
    )
    return (
        Fact(
            "texts of the refined model",
            f"a frozen language model ({origin(found['source'])}; {read}) and an adapter ({layers}) in place of the "
            "base's text tower: base and refined model have texts in different spaces, and there are no mixes of both",
        ),
    )


def origin(source: Mapping[str, Any]) -> str:
    """Write where a base model comes from, as its manifest says it.

    >>> origin({"kind": "open_clip", "model": "ViT-B-32-quickgelu", "pretrained": "openai"})
    'open_clip: `ViT-B-32-quickgelu`, `openai`'
    >>> origin({"kind": "local_dir", "folder": "mine", "source": {"kind": "hugging_face", "folder": "clip"}})
    'local_dir: `mine`, made from hugging_face: `clip`'
    >>> origin({"kind": "demo", "image_tower": "lite0", "text_tower": "minilm", "num_images": 810})
    'demo: `lite0` and `minilm` with heads trained on 810 images'
    """
    if source.get("kind") == "demo":
        towers = f"`{source['image_tower']}` and `{source['text_tower']}`"
        return f"demo: {towers} with heads trained on {source['num_images']:,} images"
    names = ", ".join(f"`{value}`" for key, value in source.items() if key not in ("kind", "source"))
    before = f", made from {origin(source['source'])}" if source.get("source") else ""
    return f"{source.get('kind', 'unknown')}: {names}{before}"


def asked_origin(base: Mapping[str, Any]) -> str:
    """Write where params.yaml has the base model from, where no manifest is at hand; a path by its name alone.

    >>> asked_origin({"source": "open_clip", "model": "ViT-B-32", "pretrained": "laion2b", "path": None})
    'open_clip: `ViT-B-32`, `laion2b`'
    """
    keys = {"open_clip": ("model", "pretrained"), "demo": ()}.get(base["source"], ("path",))
    values = [str(base[key]) for key in keys if base.get(key)]
    names = ", ".join(f"`{Path(value).name if keys == ('path',) else value}`" for value in values)
    return f"{base['source']}: {names}" if names else base["source"]


def data_place(data: Mapping[str, Any]) -> str:
    """Write format and folder of the data, by its name alone: other machines have it elsewhere."""
    return f"{data['format']} in `{Path(data['root']).name}`"


def name_sets(blocks: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the names of sets with their sizes."""
    return ", ".join(f"{name} ({set_size(block)})" for name, block in blocks.items()) or "nothing"


def set_size(block: Mapping[str, Any]) -> str:
    """Write how many images, captions and choices a set has, as results.json counts them."""
    kinds = {"captions": block.get("num_captions"), "choices": block.get("num_choices")}
    return f"{block['num_images']:,} images" + "".join(f", {count:,} {kind}" for kind, count in kinds.items() if count)
