"""Examples: the images whose own caption gained and lost most places, as thumbnails."""

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
    explain = (
        f"Place of the best own caption among all captions of {name}, and the caption that the model put first. Chosen "
        f"by the ratio of the two places. {page.percent((change > 0).mean())}\u00a0% of the images rank their own "
        f"caption better than before, {page.percent((change < 0).mean())}\u00a0% worse."
    )
    attribution = (Text(OPENMOJI, quiet=True),) if inputs.uses_openmoji else ()
    return (Text(explain), *(gallery for gallery in galleries if gallery.examples), *attribution)


def _shown(inputs: ReportInputs, name: str, places: Sequence[Array], rows: Sequence[int]) -> dict[int, tuple[Any, ...]]:
    """Return for each of `rows`: image bytes, first caption, places and captions put first, before and after."""
    part = inputs.parts[name]
    entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
    captions = [caption for _, entry in entries for caption in entry.captions]
    nearest = [nearest_caption(e.features(name), rows) for e in (inputs.base, inputs.refined)]
    return {
        row: (
            entries[row][0].read_image(entries[row][1]),
            entries[row][1].captions[0],
            [before_or_after[row] for before_or_after in places],
            [captions[before_or_after[row]] for before_or_after in nearest],
        )
        for row in rows
    }


def _example(name: str, image: bytes, caption: str, places: Sequence[float], first: Sequence[str]) -> Example:
    lines = (f"place {places[0]:g} → {places[1]:g}", f"before: {first[0]}", f"after: {first[1]}")
    return Example(name, thumbnail(image), caption, "rose" if places[1] < places[0] else "fell", lines)


def nearest_caption(features: Mapping[str, Array], rows: Sequence[int]) -> dict[int, int]:
    """Find the caption with the largest cosine for each image of `rows`: image row -> caption row."""
    image, text = unit_rows(features["raw_image_features"][list(rows)]), unit_rows(features["raw_text_features"])
    return dict(zip(rows, (image @ text.T).argmax(axis=1).tolist(), strict=True))


def thumbnail(image: bytes) -> bytes:
    """Return the image as a small JPEG on white."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image)) as opened:
        small = ImageOps.exif_transpose(opened).convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    flat = Image.new("RGB", small.size, "white")
    flat.paste(small, mask=small.getchannel("A"))
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()
