"""The figures of the report and of the comparison, from arrays: pure functions that return a `Figure`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline_lib.report.canvas import COLOURS, Figure, Panel
from pipeline_lib.report.labels import write_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
Interval = tuple[float, float, float]  # value, low, high
MODEL_COLOURS = {"base": "base", "mean-centred": "centred", "refined": "refined"}
LINE_STYLES: dict[str, Any] = {"base": "-", "mean-centred": (0, (3, 1.5)), "refined": "-"}
METHOD_STYLES: Sequence[tuple[Any, str]] = (("-", "o"), ((0, (3, 1.5)), "s"))  # lines and marks, in turn
MAX_POINTS = 250  # pairs drawn in the projection; beyond this a cloud is a blot
MAX_STEPS = 1000  # points of a training curve


@dataclass(frozen=True)
class Difference:
    """One row of a figure of differences, in percentage points."""

    label: str
    interval: Interval
    verdict: Literal["rose", "fell", "still"]
    seeds: tuple[float, ...] = ()  # of each seed, where `interval` is of their mean


def differences(rows: Sequence[Difference], *, confidence: str) -> Figure:
    """Draw refined minus base for every headline, with its interval.

    Args:
        rows: The headlines.
        confidence: Coverage of the intervals, as it reads.
    """
    return Figure(
        "differences",
        "What changed",
        f"Refined minus base on the same items, with the paired {confidence} interval. A triangle up: rose, a triangle "
        "down: fell, a dot: no measurable change after Holm's correction.",
        (_difference_rows(rows, "refined − base, percentage points"),),
        (4.4, 0.75 + 0.45 * max(2, len(rows))),
    )


def ablation(set_name: str, panels: Mapping[str, Sequence[Difference]], *, confidence: str) -> Figure:
    """Draw the difference from base of every configuration, one panel per headline.

    Args:
        set_name: Evaluation set.
        panels: headline -> configurations in the order of the rows.
        confidence: Coverage of the intervals, as it reads.
    """
    rows = max(len(of_panel) for of_panel in panels.values())
    return Figure(
        f"ablation_{_file_name(set_name)}",
        f"Differences from base on {set_name}",
        f"Marks and lines: mean over seeds with its paired {confidence} interval over images and, of several seeds, "
        "over seeds; a triangle where it is measurable after Holm's correction. Ticks: each seed by itself. Rows in "
        "the order of the ranking.",
        tuple(
            _difference_rows(of_panel, "minus base, percentage points", title=headline)
            for headline, of_panel in panels.items()
        ),
        (4.4, 0.95 + 0.4 * max(2, rows)),
    )


def _difference_rows(rows: Sequence[Difference], axis: str, *, title: str = "") -> Panel:
    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.9)
        for y, row in enumerate(rows):
            colour, (value, low, high) = COLOURS[row.verdict], row.interval
            axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
            marker = {"rose": "^", "fell": "v", "still": "o"}[row.verdict]
            axes.plot([value], [y], marker=marker, color=colour, markersize=7)
            if len(row.seeds) > 1:
                axes.plot(row.seeds, [y] * len(row.seeds), "|", color=COLOURS["ink"], markersize=9, markeredgewidth=1.1)
            # The label stands above its row, so that it is readable at any width, however long.
            box = {"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 1}
            axes.annotate(row.label, (0, y), (0, 9), ("axes fraction", "data"), "offset points", fontsize=9.5, bbox=box)
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.set(yticks=[], xlabel=axis, title=title)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")

    return draw


def projection(clouds: Mapping[str, tuple[Array, Array]], *, floor: float = 0.0) -> Figure:
    """Draw where image and text features lie, per model: along the first model's gap, and across it.

    Where less than half of the first model's squared centroid distance is more than chance (`floor`), its direction is
    mostly noise, and the first axis is that of the last model's gap.

    Args:
        clouds: model -> (image features [P, D], text features [P, D]), unit rows; row i of both is one pair.
        floor: Centroid distance that two samples of one distribution would have, in the first model.
    """
    gaps = {model: image.mean(axis=0) - text.mean(axis=0) for model, (image, text) in clouds.items()}
    sizes = {model: float(np.linalg.norm(gap)) for model, gap in gaps.items()}
    first, *_, last = [*clouds, *clouds]
    along = first if sizes[first] ** 2 >= 2 * floor**2 else last
    centre, directions, shares = _gap_plane(np.concatenate([x for pair in clouds.values() for x in pair]), gaps[along])
    points = {model: [(_evenly(x, MAX_POINTS) - centre) @ directions for x in pair] for model, pair in clouds.items()}
    means = {model: [(x.mean(axis=0) - centre) @ directions for x in pair] for model, pair in clouds.items()}
    ends = [means[model][1] + (sizes[model], 0) for model in clouds]  # of the bars
    limits = _one_scale(np.concatenate([*(x for pair in points.values() for x in pair), ends]))
    names = (
        f"along {along}'s gap, text to image ({100 * shares[0]:.0f} % of the variance)",
        f"most variance across it ({100 * shares[1]:.0f} %)",
    )
    held = {model: (float(means[model][0][0] - means[model][1][0]), sizes[model]) for model in clouds}
    shown = min(MAX_POINTS, min(len(image) for image, _ in clouds.values()))
    fallback = "" if along == first else _no_gap(first, sizes[first], floor)
    return Figure(
        "projection",
        "Where image and text features lie",
        f"Unit-length features, one scale for both axes. {fallback}The first axis runs from the mean caption to the "
        f"mean image of {along}, in every panel; the second is the direction of most variance of all models together "
        "across it. The large marks are the means. The bar is the gap: as long as the centroid distance, the line "
        f"inside as long as what of it lies along the first axis ({_held_along(held)}). Each line joins an image and "
        f"its first caption ({shown} pairs drawn). Shorter lines: better aligned pairs.",
        tuple(_cloud(model, points[model], means[model], sizes[model], names, limits) for model in clouds),
        (4.4, 4.5),
    )


def _no_gap(model: str, size: float, floor: float) -> str:
    return (
        f"{model} has no gap to speak of: its centroids lie {size:.3f} apart, and two samples of one distribution "
        f"would lie {floor:.3f} apart. "
    )


def _held_along(held: Mapping[str, tuple[float, float]]) -> str:
    """Say how much of each model's gap lies along the first axis, from that and the whole."""
    said = [
        f"{model}: all of {size:.3f}"
        if round(along, 3) == round(size, 3)
        else f"{model}: {along:.3f} of {size:.3f}, {100 * along / size:.0f} %"
        for model, (along, size) in held.items()
    ]
    return "; ".join(said).replace("-", "−")


def _one_scale(points: Array) -> dict[str, tuple[float, float]]:
    """Return limits of both axes that span the same length and hold all points [n, 2], with room at the top."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.6 * float((high - low).max()) + 1e-3
    x, y = (low + high) / 2
    return {"xlim": (x - half, x + half), "ylim": (y - 0.9 * half, y + 1.1 * half)}


def _gap_plane(rows: Array, gap: Array) -> tuple[Array, Array, Array]:
    """Return the mean [D], the direction of the gap and that of most variance across it [D, 2], their shares [2]."""
    centre = rows.mean(axis=0, dtype=np.float64)
    along = gap.astype(np.float64) / (np.linalg.norm(gap) or 1.0)
    centred = rows - centre
    places = centred @ along
    across = centred - np.outer(places, along)
    values, vectors = np.linalg.eigh(across.T @ across)
    direction = vectors[:, -1] * np.sign(vectors[np.abs(vectors[:, -1]).argmax(), -1])
    held = np.array([places @ places, max(values[-1], 0.0)])
    return centre, np.stack([along, direction], axis=1), held / (np.square(centred).sum() or 1.0)


def _cloud(
    model: str, points: Sequence[Array], means: Sequence[Array], size: float, names: tuple[str, str], limits: Any
) -> Panel:
    def draw(axes: Axes) -> None:
        image, text = points
        breaks = np.full_like(image, np.nan)
        joins = np.stack([image, text, breaks], axis=1).reshape(-1, 2)
        axes.plot(joins[:, 0], joins[:, 1], color=COLOURS["base"], linewidth=0.5, alpha=0.45)
        for kind, marker, cloud, mean in zip(("image", "text"), "oD", points, means, strict=True):
            style: dict[str, Any] = {"alpha": 0.75, "markeredgewidth": 0, "label": kind}
            axes.plot(*cloud.T, marker, color=COLOURS[kind], markersize=3.6, **style)
            axes.plot(*mean, marker, color=COLOURS[kind], markersize=10, markeredgecolor=COLOURS["paper"], zorder=4)
        _draw_gap(axes, means[1][0], means[0][0], size)
        axes.set(title=model, xlabel=names[0], ylabel=names[1], **limits)
        axes.set_aspect("equal")
        axes.legend(loc="lower left", handletextpad=0.1, markerscale=1.6)

    return draw


def _draw_gap(axes: Axes, text: float, image: float, size: float) -> None:
    """Draw a bar as long as the gap at the top, from the mean text on; the line inside ends at the mean image."""
    top = axes.get_xaxis_transform()
    for end, colour, width in ((text + size, "still", 5.0), (image, "ink", 2.0)):
        axes.plot([text, end], [0.91] * 2, color=COLOURS[colour], linewidth=width, transform=top, solid_capstyle="butt")
    axes.annotate(f"gap {size:.3f}", (text, 0.91), (0, 6), top, "offset points")


def cosine_histogram(cosines: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Draw the distribution of cosines, per model.

    Args:
        cosines: model -> {"pairs", "non-pairs", "image–image", "text–text"} -> cosines [any number].
    """
    values = [x for kinds in cosines.values() for x in kinds.values()]
    low, high = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    high = max(high, low + 1e-3)
    edges = np.linspace(low, high, 61)
    heights = {
        m: {k: np.histogram(x, edges)[0] / max(1, len(x)) for k, x in kinds.items()} for m, kinds in cosines.items()
    }
    top = 1.35 * max(float(h.max()) for kinds in heights.values() for h in kinds.values())

    def panel(model: str) -> Panel:
        def draw(axes: Axes) -> None:
            for kind, colour, filled, style in (
                ("non-pairs", "base", True, "-"),
                ("pairs", "refined", True, "-"),
                ("image–image", "image", False, "-"),
                ("text–text", "text", False, (0, (3, 1.5))),
            ):
                if kind in heights[model]:
                    options: dict[str, Any] = {"alpha": 0.45} if filled else {"linestyle": style, "linewidth": 1.2}
                    axes.stairs(heights[model][kind], edges, fill=filled, color=COLOURS[colour], label=kind, **options)
                    if filled:
                        axes.stairs(heights[model][kind], edges, color=COLOURS[colour], linewidth=0.9)
            axes.set(xlim=(low, high), ylim=(0, top), xlabel="cosine", title=model, yticks=[])
            axes.spines["left"].set_visible(False)
            axes.legend(loc="upper left", ncols=2, handlelength=1.4, columnspacing=1.2, borderaxespad=0)

        return draw

    return Figure(
        "cosines",
        "How similar pairs are, and everything else",
        "Cosines of images with their own captions (pairs) and with other captions (non-pairs), and, as lines, among "
        "images and among captions. Retrieval needs pairs and non-pairs to lie apart; where non-pairs lie to the "
        "left of both lines, the two modalities keep to themselves: the gap.",
        tuple(panel(model) for model in cosines),
    )


def gap_spectrum(centroid_differences: Mapping[str, Array]) -> Figure:
    """Draw the difference of the two centroids by dimension: how large, and in how few dimensions.

    Args:
        centroid_differences: model -> mean image feature minus mean text feature [D].
    """
    ordered = {model: np.sort(np.abs(x))[::-1] for model, x in centroid_differences.items()}

    def size(axes: Axes) -> None:
        for model, x in ordered.items():
            style = LINE_STYLES[model]
            axes.plot(np.arange(1, len(x) + 1), x, color=COLOURS[MODEL_COLOURS[model]], linestyle=style, label=model)
        axes.set(ylim=(0, None), title="Size", xlabel="dimension, largest first", ylabel="|difference|")
        _log_counts(axes)
        axes.grid(axis="y")
        axes.legend()

    def share(axes: Axes) -> None:
        for model, x in ordered.items():
            total = float(np.square(x).sum()) or 1.0
            part = np.cumsum(np.square(x)) / total
            style = LINE_STYLES[model]
            axes.plot(np.arange(1, len(x) + 1), 100 * part, color=COLOURS[MODEL_COLOURS[model]], linestyle=style)
        axes.set(ylim=(0, 103), title="Concentration", xlabel="the k largest dimensions", ylabel="% of the squared gap")
        _log_counts(axes)
        axes.grid(axis="y")

    return Figure(
        "gap_spectrum",
        "The gap, dimension by dimension",
        "Size: how far the mean image and the mean caption lie apart in each dimension, largest first. "
        "Concentration: the share of the squared distance held by the k largest; a line that jumps up at once means "
        "that few dimensions carry the gap. Mean-centred: the base less each modality's mean on other images.",
        (size, share),
    )


def recall_bars(set_name: str, recalls: Mapping[str, Mapping[str, Mapping[int, Interval]]]) -> Figure:
    """Draw recall at k in both directions with intervals.

    Args:
        set_name: Evaluation set, for the title.
        recalls: direction -> model -> k -> recall (shares, not percent).
    """
    top = max(high for models in recalls.values() for ks in models.values() for _, _, high in ks.values())

    def panel(direction: str) -> Panel:
        def draw(axes: Axes) -> None:
            models = recalls[direction]
            width = 0.8 / len(models)
            for i, (model, by_k) in enumerate(models.items()):
                x = np.arange(len(by_k)) + (i - (len(models) - 1) / 2) * width
                values, low, high = 100 * np.array(list(by_k.values())).T
                whiskers = np.maximum(0, [values - low, high - values])
                axes.bar(x, values, 0.9 * width, color=COLOURS[MODEL_COLOURS[model]], label=model)
                axes.errorbar(x, values, whiskers, fmt="none", color=COLOURS["ink"], elinewidth=1.0, capsize=2.5)
                axes.set_xticks(np.arange(len(by_k)), [f"R@{k}" for k in by_k])
            axes.set(title=direction, ylim=(0, min(104, 108 * top)), ylabel="recall, %")
            axes.grid(axis="y")
            axes.tick_params(axis="x", length=0)
            axes.legend(loc="upper left")

        return draw

    return Figure(
        f"recall_{_file_name(set_name)}",
        f"Retrieval on {set_name}",
        "Share of queries that find one of their own within the first k, with bootstrap intervals. These intervals are "
        "of each model by itself; whether two models differ is told by the paired differences above, which are "
        "narrower.",
        tuple(panel(direction) for direction in recalls),
    )


def training_curves(steps: Array, terms: Mapping[str, Array]) -> Figure:
    """Draw every logged loss term over the steps, each on its own scale.

    Args:
        steps: [S] step numbers.
        terms: name -> values [S], NaN where a step did not log it.
    """

    def panel(name: str) -> Panel:
        def draw(axes: Axes) -> None:
            values = terms[name]
            if len(values) < 60:
                axes.plot(steps, values, color=COLOURS["refined"], marker="o", markersize=3.5)
            else:
                window = max(5, len(values) // 30)
                smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
                for x, y, width, alpha in ((steps, values, 0.6, 0.45), (steps[window - 1 :], smooth, 1.6, 1.0)):
                    x, y = _evenly(x, MAX_STEPS), _evenly(y, MAX_STEPS)
                    axes.plot(x, y, color=COLOURS["refined"], linewidth=width, alpha=alpha)
            axes.set(title=name.replace("_", " "), xlabel="step")
            axes.grid(axis="y")
            axes.locator_params(axis="x", integer=True, nbins=6)
            axes.ticklabel_format(axis="y", useOffset=False)

        return draw

    return Figure(
        "training",
        "Training, term by term",
        "Every term of the loss at every step, each on its own scale (not from zero)."
        + (" The thick line is a running mean." if len(steps) >= 60 else ""),
        tuple(panel(name) for name in terms),
        (4.4, 2.6),
    )


def few_shot_curves(curves: Mapping[str, Mapping[str, Mapping[str, Mapping[int, float]]]]) -> Figure:
    """Draw accuracy against the number of labelled images of each class, per task, base against refined.

    Args:
        curves: title -> model -> method -> images per class -> accuracy (shares, not percent).
    """

    def panel(title: str) -> Panel:
        def draw(axes: Axes) -> None:
            shots = sorted({n for methods in curves[title].values() for line in methods.values() for n in line})
            for model, methods in curves[title].items():
                for (method, line), (style, marker) in zip(methods.items(), METHOD_STYLES, strict=False):
                    axes.plot(
                        [shots.index(n) for n in line],
                        [100 * share for share in line.values()],
                        color=COLOURS[MODEL_COLOURS[model]],
                        linestyle=style,
                        marker=marker,
                        markersize=4.5,
                        label=f"{model}, {method}",
                    )
            axes.set_xticks(range(len(shots)), [str(n) for n in shots])
            axes.set(title=title, xlabel="images of each class", ylabel="top-1, %")
            axes.grid(axis="y")
            axes.legend(loc="upper left")

        return draw

    return Figure(
        "few_shot",
        "From a few images of each class",
        "Top-1 accuracy with so many labelled images of each class, as a mean over draws that are the same for both "
        "models; 0 is zero-shot. Solid, from 0 on: GDA on top of the prompts; dashed: a logistic probe without them. "
        "Where the refined line lies below the base's, the image features know less than before.",
        tuple(panel(title) for title in curves),
    )


def wise_ft_curve(curves: Mapping[str, Sequence[tuple[float, float, float]]], *, chosen: float | None) -> Figure:
    """Draw zero-shot skill against retrieval along the line between the base's weights and the refined ones.

    Args:
        curves: title -> (mix, change of mean zero-shot top-1, change of mean log rank), in points against the base.
        chosen: The mix to mark; None: none.
    """

    def panel(title: str) -> Panel:
        def draw(axes: Axes) -> None:
            mixes, zero_shot, retrieval = (np.array(column) for column in zip(*sorted(curves[title]), strict=True))
            axes.axvline(0, color=COLOURS["rule"], linewidth=0.9)
            axes.axhline(0, color=COLOURS["rule"], linewidth=0.9)
            axes.plot(zero_shot, retrieval, color=COLOURS["refined"], marker="o", markersize=5)
            for mix, x, y in zip(mixes, zero_shot, retrieval, strict=True):
                if mix == chosen:
                    axes.plot([x], [y], "o", markersize=12, markerfacecolor="none", markeredgecolor=COLOURS["ink"])
            axes.margins(0.18)
            axes.set_title(title)
            axes.set_xlabel("zero-shot top-1 against base, points")
            axes.set_ylabel("retrieval log rank against base, points")
            points = list(zip(zero_shot.tolist(), retrieval.tolist(), strict=True))
            names = [{0.0: "base", 1.0: "refined"}.get(mix, f"{mix:g}") for mix in mixes.tolist()]
            write_names(axes, list(zip(names, points, strict=True)), points, path=points)

        return draw

    return Figure(
        "wise_ft",
        "Between base and refined",
        "Weights interpolated between base (0) and refined (1), as in WiSE-FT: gained retrieval (up) against lost "
        "zero-shot skill (left), each the mean over sets and tasks. Up and to the right is better in both.",
        tuple(panel(title) for title in curves),
        (4.4, 3.4),
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def _log_counts(axes: Axes) -> None:
    """Make an axis logarithmic in whole numbers, written as such."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _evenly(rows: Array, count: int) -> Array:
    """Return at most `count` rows, evenly spaced: [n, ...] -> [min(n, count), ...]."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
