"""Examples: the images whose own caption gained and lost most places, as the model got them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_lib.report import page
from pipeline_lib.report.inputs import OPENMOJI, ReportInputs
from pipeline_lib.report.page import Example, Gallery, Text
from pipeline_lib.results.folders import Array
from pipeline_lib.results.gap import unit_rows

THUMBNAIL = 304  # pixels; more than an example takes on the page, for sharp screens
MUCH = 0.25  # share of an image; where more was cut off, the example says so


def show_examples(inputs: ReportInputs) -> tuple[Any, ...]:
    """Show the images whose own caption gained and lost most places."""
    if not inputs.with_captions or not inputs.num_examples:
        return ()
    name = inputs.with_captions[0]
    places = [e.items(name)["image_to_text_rank"].astype(float) for e in (inputs.base, inputs.refined)]
    change = np.log(places[0]) - np.log(places[1])
    order = np.argsort(-change, kind="stable").tolist()
    better = [row for row in order[: inputs.num_examples] if change[row] > 0]
    worse = [row for row in order[::-1][: inputs.num_examples] if change[row] < 0]
    shown = _shown(inputs, name, places, [*better, *worse])
    galleries = (
        Gallery("Rank improved most", tuple(_example(f"better-{i}", *shown[row]) for i, row in enumerate(better, 1))),
        Gallery("Rank worsened most", tuple(_example(f"worse-{i}", *shown[row]) for i, row in enumerate(worse, 1))),
    )
    preprocess = inputs.manifests["base"]["model"]["preprocess"]
    explain = (
        f"Place of the best own caption among all captions of {name}, and the caption that the model put first. Chosen "
        f"by the ratio of the two places. {page.percent((change > 0).mean())}\u00a0% of the images rank their own "
        f"caption better than before, {page.percent((change < 0).mean())}\u00a0% worse. {how_images_look(preprocess)}"
    )
    attribution = (Text(OPENMOJI, quiet=True),) if inputs.uses_openmoji else ()
    return (Text(explain), *(gallery for gallery in galleries if gallery.examples), *attribution)


def how_images_look(preprocess: Mapping[str, Any]) -> str:
    """Say what the model's own preprocessing did to the images shown."""
    height, width = preprocess["size"]
    fitted = {
        "shortest": f"the shorter side resized, the middle cut out; where more than {100 * MUCH:.0f}\u00a0% of an "
        "image was cut off, it says how much",
        "longest": "the longer side resized, the rest filled",
        "squash": "resized without regard to their proportions",
    }[preprocess["resize_mode"]]
    return f"Images are shown as both models got them, {width} × {height} pixels before normalisation: {fitted}."


def _shown(inputs: ReportInputs, name: str, places: Sequence[Array], rows: Sequence[int]) -> dict[int, tuple[Any, ...]]:
    """Return for each of `rows`: the image, how much was cut off, first caption, places and captions put first."""
    from pipeline_lib.model import Preprocess  # loads torch, which the table on the terminal does without

    part, preprocess = inputs.parts[name], Preprocess(inputs.manifests["base"]["model"]["preprocess"])
    entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
    captions = [caption for _, entry in entries for caption in entry.captions]
    nearest = [nearest_caption(e.features(name), rows) for e in (inputs.base, inputs.refined)]
    images = {row: entries[row][0].read_image(entries[row][1]) for row in rows}
    return {
        row: (
            thumbnail(preprocess.decode(image, part.max_image_pixels)),
            cut_off(image, preprocess.config),
            entries[row][1].captions[0],
            [before_or_after[row] for before_or_after in places],
            [captions[before_or_after[row]] for before_or_after in nearest],
        )
        for row, image in images.items()
    }


def _example(
    name: str, jpeg: bytes, cut: float, caption: str, places: Sequence[float], first: Sequence[str]
) -> Example:
    lines = [f"place {places[0]:g} → {places[1]:g}", f"before: {first[0]}", f"after: {first[1]}"]
    lines += [f"{100 * cut:.0f}\u00a0% of the image cut off"] if cut > MUCH else []
    return Example(name, jpeg, caption, "rose" if places[1] < places[0] else "fell", tuple(lines))


def cut_off(image: bytes, preprocess: Mapping[str, Any]) -> float:
    """Return the share of an image file's area that the model's centre crop leaves out."""
    from PIL import Image

    if preprocess["resize_mode"] != "shortest":
        return 0.0
    with Image.open(io.BytesIO(image)) as opened:
        sides = opened.width / preprocess["size"][1], opened.height / preprocess["size"][0]
    return 1 - min(sides) / max(sides)


def nearest_caption(features: Mapping[str, Array], rows: Sequence[int]) -> dict[int, int]:
    """Find the caption with the largest cosine for each image of `rows`: image row -> caption row."""
    image, text = unit_rows(features["raw_image_features"][list(rows)]), unit_rows(features["raw_text_features"])
    return dict(zip(rows, (image @ text.T).argmax(axis=1).tolist(), strict=True))


def thumbnail(pixels: Array) -> bytes:
    """Return uint8 pixels [3, H, W] as a JPEG, made smaller where they are more than the page shows."""
    from PIL import Image

    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    return buffer.getvalue()
