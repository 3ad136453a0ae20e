"""Figures: what is drawn equals slow recomputation."""

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure as Canvas

from pipeline_lib import metrics
from pipeline_lib.report import canvas, figures
from pipeline_lib.report.canvas import COLOURS
from pipeline_lib.report.figures import Difference

RNG = np.random.default_rng(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(count=30, width=5):
    return {
        m: (unit(RNG.normal(size=(count, width))), unit(RNG.normal(size=(count, width)))) for m in ("base", "refined")
    }


def axes_of(figure, panel=0):
    axes = Canvas().subplots()
    figure.panels[panel](axes)
    return axes


def shifted(gap=0.5, count=30, width=5):
    """Base and refined whose gaps have other directions, the base's of about this size."""
    both, found = clouds(count, width), {}
    for model, side, size in (("base", 0, gap), ("refined", 1, 0.6)):
        shift = size * np.eye(width)[side]
        found[model] = (unit(both[model][0] + shift), unit(both[model][1] - shift))
    return found


def test_projection_runs_along_the_gap_of_the_base_and_in_the_main_direction_across_it():
    both = shifted()
    rows = np.concatenate([x for pair in both.values() for x in pair])
    gap = both["base"][0].mean(0) - both["base"][1].mean(0)
    along = gap / np.linalg.norm(gap)
    across = rows - rows.mean(0) - np.outer((rows - rows.mean(0)) @ along, along)
    _, sizes, directions = np.linalg.svd(across, full_matrices=False)
    assert directions[0] @ along == pytest.approx(0, abs=1e-9)
    figure = figures.projection(both)
    axes = [axes_of(figure, panel) for panel in (0, 1)]
    joins, images, texts = (axes[1].lines[i].get_xydata() for i in (0, 1, 3))
    centred = both["refined"][0] - rows.mean(0)
    np.testing.assert_allclose(images[:, 0], centred @ along, atol=1e-9)
    np.testing.assert_allclose(np.abs(images[:, 1]), np.abs(centred @ directions[0]), atol=1e-9)  # up to its sign
    np.testing.assert_array_equal(joins.reshape(-1, 3, 2)[:, 0], images)
    np.testing.assert_array_equal(joins.reshape(-1, 3, 2)[:, 1], texts)
    assert np.isnan(joins.reshape(-1, 3, 2)[:, 2]).all()
    assert (axes[0].get_xlim(), axes[0].get_ylim()) == (axes[1].get_xlim(), axes[1].get_ylim())
    total = np.square(rows - rows.mean(0)).sum()
    held = np.square((rows - rows.mean(0)) @ along).sum() / total, sizes[0] ** 2 / total
    assert axes[0].get_xlabel() == f"along base's gap, text to image ({100 * held[0]:.0f} % of the variance)"
    assert axes[0].get_ylabel() == f"most variance across it ({100 * held[1]:.0f} %)"


def test_projection_shows_the_centroid_distance():
    """In the base's panel as the distance of the large marks along the first axis, in every panel as the bar."""
    both = shifted(count=figures.MAX_POINTS + 40)  # more than are drawn: the means are of all
    figure = figures.projection(both)
    found = {}
    for panel, (model, pair) in enumerate(both.items()):
        size = metrics.centroid_distance(*(torch.tensor(x) for x in pair)).item()
        axes = axes_of(figure, panel)
        image, text = (axes.lines[i].get_xydata()[0] for i in (2, 4))
        bar, dark = (axes.lines[i].get_xdata() for i in (5, 6))
        assert bar[1] - bar[0] == pytest.approx(size)
        assert list(dark) == pytest.approx([text[0], image[0]])
        assert f"gap {size:.3f}" in [note.get_text() for note in axes.texts]
        found[model] = (dark[1] - dark[0], size)
    assert found["base"][0] == pytest.approx(found["base"][1])
    assert abs(found["refined"][0]) < 0.5 * found["refined"][1]
    part, whole = found["refined"]
    assert f"refined: {part:.3f} of {whole:.3f}, {100 * part / whole:.0f} %".replace("-", "−") in figure.caption
    assert f"{figures.MAX_POINTS} pairs drawn" in figure.caption
    assert len(axes_of(figure).lines[1].get_xydata()) == figures.MAX_POINTS


@pytest.mark.parametrize(("share_of_distance", "along"), [(0.6, "base"), (0.8, "refined")])
def test_projection_falls_back_where_the_base_has_no_gap(share_of_distance, along):
    """Where more than half of its squared distance is chance, the direction of the base's gap says nothing."""
    both = shifted()
    distance = np.linalg.norm(both["base"][0].mean(0) - both["base"][1].mean(0))
    figure = figures.projection(both, floor=share_of_distance * distance)
    assert axes_of(figure).get_xlabel().startswith(f"along {along}'s gap")
    said = f"base has no gap to speak of: its centroids lie {distance:.3f} apart"
    assert (said in figure.caption) == (along == "refined")


def test_histogram_heights_are_shares():
    figure = figures.cosine_histogram({"base": {"pairs": np.array([0.0, 0.0, 1.0, 0.5])}})
    heights, edges, _ = axes_of(figure).patches[0].get_data()
    assert heights.sum() == pytest.approx(1)
    assert (edges[0], edges[-1], heights[0], heights[-1]) == (0.0, 1.0, 0.5, 0.25)


def test_constant_features_are_drawn_too():
    """A collapsed model must not stop the report."""
    same = np.ones((4, 3)) / np.sqrt(3)
    for figure in (
        figures.projection({"base": (same, same)}),
        figures.cosine_histogram({"base": {"pairs": np.ones(4)}}),
        figures.gap_spectrum({"base": np.zeros(3)}),
    ):
        assert canvas.to_svgs(figure)


def test_gap_spectrum_by_hand():
    figure = figures.gap_spectrum({"base": np.array([0.0, -4.0, 3.0])})
    np.testing.assert_array_equal(axes_of(figure, 0).lines[0].get_ydata(), [4, 3, 0])
    np.testing.assert_allclose(axes_of(figure, 1).lines[0].get_ydata(), [64, 100, 100])


def test_gap_spectrum_shows_the_free_baseline_between_the_models():
    gap = np.array([3.0, 1.0])
    figure = figures.gap_spectrum({"base": gap, "mean-centred": gap / 2, "refined": gap / 3})
    lines = axes_of(figure, 0).lines
    assert [line.get_label() for line in lines] == ["base", "mean-centred", "refined"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3


def test_recall_bars_show_values_with_their_intervals():
    figure = figures.recall_bars(
        "s", {"image → text": {"base": {1: (0.2, 0.1, 0.4)}, "refined": {1: (0.3, 0.25, 0.5)}}}
    )
    axes = axes_of(figure)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([20, 30])
    whiskers = [line.get_segments()[0][:, 1].tolist() for line in axes.collections]
    assert whiskers == [pytest.approx([10, 40]), pytest.approx([25, 50])]
    assert figure.name == "recall_s"


def test_long_training_curves_get_a_running_mean_and_short_ones_do_not():
    values = RNG.random(90)
    axes = axes_of(figures.training_curves(np.arange(90), {"loss": values}))
    window = 5
    slow = [np.mean(values[i - window + 1 : i + 1]) for i in range(window - 1, 90)]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), slow)
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), np.arange(window - 1, 90))
    assert len(axes_of(figures.training_curves(np.arange(9), {"loss": values[:9]})).lines) == 1


def test_curves_of_any_length_stay_small():
    figure = figures.training_curves(np.arange(50_000), {"loss": RNG.random(50_000)})
    assert len(canvas.to_svgs(figure)[0]) < 100_000


def test_wise_ft_rings_nothing_where_nothing_was_chosen():
    curve = {"eval": [(0, 0, 0), (0.5, 1, 2), (1, -1, 3)]}
    lines = [len(axes_of(figures.wise_ft_curve(curve, chosen=chosen)).lines) for chosen in (None, 0.5)]
    assert lines[0] == lines[1] - 1


def test_wise_ft_orders_by_mix_names_the_ends_and_rings_the_choice():
    axes = axes_of(figures.wise_ft_curve({"eval": [(1, -1, 3), (0, 0, 0), (0.5, 1, 2)]}, chosen=0.5))
    np.testing.assert_array_equal(axes.lines[2].get_xydata(), [[0, 0], [1, 2], [-1, 3]])
    assert [text.get_text() for text in axes.texts] == ["base", "0.5", "refined"]
    np.testing.assert_array_equal(axes.lines[3].get_xydata(), [[1, 2]])


def test_differences_carry_their_verdict_by_shape_and_colour():
    rows = [
        Difference("a", (2, 1, 3), "rose"),
        Difference("b", (-2, -3, -1), "fell"),
        Difference("c", (0, -1, 1), "still"),
    ]
    axes = axes_of(figures.differences(rows, confidence="95 %"))
    marks = axes.lines[2::2]
    assert [mark.get_marker() for mark in marks] == ["^", "v", "o"]
    for mark, row in zip(marks, rows, strict=True):
        assert same_color(mark.get_color(), COLOURS[row.verdict])
    assert [list(line.get_xdata()) for line in axes.lines[1::2]] == [[1, 3], [-3, -1], [-1, 1]]
