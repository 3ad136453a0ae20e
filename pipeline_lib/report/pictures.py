"""The pictures of the page: arrays for the figures, examples with thumbnails, the curve between base and refined."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_lib.report import figures, page
from pipeline_lib.report.inputs import OPENMOJI, Inputs
from pipeline_lib.report.page import Drawing, Example, Fold, Gallery, Text
from pipeline_lib.results import folders as results
from pipeline_lib.results.folders import CENTRED, Array, Variant, centred_pairs, first_pairs, unit

THUMBNAIL = 304  # pixels; more than an example takes on the page, for sharp screens
MAX_ROWS = 1000  # images whose cosines with each other are drawn


def drawings(inputs: Inputs) -> tuple[Any, ...]:
    """Features, recall and training."""
    drawn: list[figures.Figure] = []
    if inputs.with_captions:
        drawn += _feature_figures(inputs, inputs.with_captions[0])
    drawn += [_recalls(inputs, name) for name in inputs.with_captions]
    rows = inputs.history
    names = [key for key in rows[0] if key == "loss" or key.endswith("_loss")] if rows else []
    if names:
        terms = {key: np.array([row.get(key, np.nan) for row in rows], dtype=float) for key in names}
        drawn.append(figures.training_curves(np.array([row["step"] for row in rows]), terms))
    return tuple(Drawing(figure) for figure in drawn)


def _feature_figures(inputs: Inputs, name: str) -> list[figures.Figure]:
    pairs = {"base": first_pairs(inputs.base, name), "refined": first_pairs(inputs.refined, name)}
    spectra = {"base": pairs["base"], "mean-centred": centred_pairs(inputs.base, name), "refined": pairs["refined"]}
    gaps = {model: sides[0].mean(0) - sides[1].mean(0) for model, sides in spectra.items() if sides}
    return [
        figures.projection(pairs),
        figures.cosine_histogram({model: cosines(*features) for model, features in pairs.items()}),
        figures.gap_spectrum(gaps),
    ]


def cosines(image: Array, text: Array) -> dict[str, Array]:
    """Cosines of pairs, of non-pairs, and within each modality (at most `MAX_ROWS` evenly chosen pairs)."""
    if len(image) > MAX_ROWS:
        chosen = np.linspace(0, len(image) - 1, MAX_ROWS).round().astype(int)
        image, text = image[chosen], text[chosen]
    other = ~np.eye(len(image), dtype=bool)
    half = np.triu(other)
    return {
        "pairs": (image * text).sum(axis=1),
        "non-pairs": (image @ text.T)[other],
        "image–image": (image @ image.T)[half],
        "text–text": (text @ text.T)[half],
    }


def _recalls(inputs: Inputs, name: str) -> figures.Figure:
    models = {
        "base": Variant(inputs.base),
        "mean-centred": Variant(inputs.base, CENTRED),
        "refined": Variant(inputs.refined),
    }
    by_direction: dict[str, dict[str, dict[int, figures.Interval]]] = {}
    for model, variant in models.items():
        for measure in variant.measures(name):
            direction, _, k = measure.label.partition(" R@")
            if k:
                by_direction.setdefault(direction, {}).setdefault(model, {})[int(k)] = measure.interval
    return figures.recall_bars(name, by_direction)


def examples(inputs: Inputs) -> tuple[Any, ...]:
    """The pictures whose own caption gained and lost most places."""
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
        f"by the ratio of the two places. {page.percent((change > 0).mean())}\u00a0% of the pictures rank their own "
        f"caption better than before, {page.percent((change < 0).mean())}\u00a0% worse."
    )
    attribution = (Text(OPENMOJI, quiet=True),) if inputs.uses_openmoji else ()
    return (Text(explain), *(gallery for gallery in galleries if gallery.examples), *attribution)


def _shown(inputs: Inputs, name: str, places: Sequence[Array], rows: Sequence[int]) -> dict[int, tuple[Any, ...]]:
    """For each of `rows`: image bytes, first caption, places before and after, captions put first before and after."""
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
    """The caption with the largest cosine for each picture of `rows`: image row -> caption row."""
    image, text = unit(features["raw_image_features"][list(rows)]), unit(features["raw_text_features"])
    return dict(zip(rows, (image @ text.T).argmax(axis=1).tolist(), strict=True))


def thumbnail(image: bytes) -> bytes:
    """The picture as a small JPEG on white."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()


def wise_ft(inputs: Inputs) -> tuple[Any, ...]:
    """The curve between base and refined, and the mix that the selection part would choose, by whatever it measures."""
    selection, sets = list(inputs.refined.selection), ", ".join(inputs.sets)
    choosing, curve = (results.wise_curve(inputs.base, inputs.refined, names) for names in (selection, inputs.sets))
    if not _drawn(curve):
        return ()
    chosen = results.best_mix(choosing) if choosing else None
    drawn = {sets: _drawn(curve)} | {f"{', '.join(selection)} (to choose on)": _drawn(choosing)}
    return (
        Drawing(figures.wise_ft_curve({title: points for title, points in drawn.items() if points}, chosen=chosen)),
        Text(_chosen_mix(sets, curve, chosen, _chosen_by(choosing, ", ".join(selection)))),
        Fold("The curve as numbers, against base", (_wise_table(inputs, curve),)),
    )


def _drawn(curve: results.Curve) -> list[tuple[float, float, float]]:
    """The points of a curve that measures both kinds of headlines, else none: one kind makes no plane."""
    return [(mix, x, y) for mix, x, y in curve if x is not None and y is not None]


def _chosen_by(choosing: results.Curve, selection: str) -> str:
    """By what and where a mix is chosen, as it is said after `the best`; empty where it cannot be chosen."""
    if not choosing:
        return ""
    _, zero_shot, retrieval = choosing[0]
    kind = "zero-shot accuracy" if retrieval is None else "retrieval" if zero_shot is None else "mean of both"
    return f"{kind}, chosen on {selection}"


def _chosen_mix(sets: str, curve: results.Curve, chosen: float | None, by: str) -> str:
    _, *changes = next(point for point in curve if point[0] == chosen) if chosen is not None else curve[0]
    gained = " and ".join(
        f"{page.points(change / 100)} points {kind}"
        for change, kind in zip(changes, ("zero-shot", "retrieval"), strict=True)
        if change is not None
    )
    if chosen is None:
        text = (
            f"No mix is named the best: there is no other part to choose it on, and {sets} should judge it, not choose."
        )
    elif chosen == 0:
        text = f"No mix has a better {by.replace(', chosen', ' than the base itself (ringed), chosen')}."
    elif chosen == 1:
        text = f"The refined model itself (ringed) has the best {by}: on {sets} {gained}."
    else:
        text = (
            f"The ringed mix, {chosen:g}, has the best {by}. On {sets} it gives {gained} "
            f"against base. `python -m pipeline_lib.export` with `--mix {chosen:g}` writes that model."
        )
    return f"{text} The points of the curve carry no intervals; on few pictures much of their scatter is luck."


def _wise_table(inputs: Inputs, curve: results.Curve) -> page.Table:
    """The sweep as numbers, the gap on the first set with captions among them."""
    name = inputs.with_captions[0]
    models = {0.0: inputs.base, 1.0: inputs.refined}
    gaps = {mix: evaluation.block(name, "gap").get("centroid_distance") for mix, evaluation in models.items()}
    sweep = inputs.refined.results.get("wise_ft") or []
    gaps |= {float(row["mix"]): row["metrics"][name].get("centroid_distance") for row in sweep}
    rows = {
        f"{mix:g}": [page.points(x / 100), page.points(y / 100), page.number(gaps[mix])] for mix, x, y in _drawn(curve)
    }
    header = ("share of refined weights", "zero-shot top-1, points", "retrieval R@1, points", "centroid distance")
    return page.grid(header, rows)
