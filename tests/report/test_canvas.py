"""Rendering of figures: bytes depend on the arrays alone, the page's SVG is sound, the PNG is whole."""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pipeline_lib.report import canvas, figures, trade_off
from pipeline_lib.report.canvas import COLOURS
from pipeline_lib.report.figures import Difference
from pipeline_lib.report.trade_off import Place
from pipeline_lib.results.gap import unit_rows

RNG = np.random.default_rng(0)


def every_figure():
    steps = np.arange(70)
    clouds = {m: tuple(unit_rows(RNG.normal(size=(30, 5))) for _ in range(2)) for m in ("base", "refined")}
    recall = {"base": {1: (0.2, 0.1, 0.3), 5: (0.5, 0.4, 0.6)}, "refined": {1: (0.3, 0.2, 0.4), 5: (0.6, 0.5, 0.7)}}
    rows = [Difference("eval: a", (2.0, 1.0, 3.0), "rose"), Difference("eval: b", (0.0, -1.0, 1.0), "still")]
    return [
        figures.differences(rows, confidence="95 %"),
        figures.ablation("eval", {"R@1": [Difference("x", (-2.0, -3.0, -1.0), "fell", (-2.5, -1.5))]}, confidence="9"),
        figures.projection(clouds),
        figures.cosine_histogram({"base": {"pairs": RNG.random(40), "non-pairs": RNG.random(90) - 0.5}}),
        figures.gap_spectrum({m: RNG.normal(size=12) for m in ("base", "mean-centred", "refined")}),
        figures.recall_bars("my set/1", {"image → text": recall}),
        figures.training_curves(steps, {"loss": RNG.random(70), "a_loss": np.where(steps % 2, np.nan, 1.0)}),
        figures.wise_ft_curve({"eval": [(0, 0, 0), (0.5, 1, 2), (1, -1, 3)]}, chosen=0.5),
        trade_off.trade_off({"eval": [Place("a", "a", "k", (2, 1, 3), (1, 0, 2))]}, [], confidence="9", note=""),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return every_figure()


def test_svg_is_a_page_element_without_dates_sizes_or_fixed_colours(drawn):
    """Each colour became a CSS variable, texts stayed texts, nothing tells when or with what it was drawn."""
    for figure in drawn:
        for svg in canvas.to_svgs(figure):
            root = ElementTree.fromstring(svg)
            assert root.tag.endswith("svg")
            assert "viewBox" in root.attrib
            assert not {"width", "height"} & set(root.attrib)
            assert "<text" in svg
            assert "DejaVu" not in svg
            assert not re.search(r"<metadata|matplotlib v|<dc:|\d{4}-\d\d-\d\d", svg)
            assert not any(value in svg for value in COLOURS.values())
            assert set(re.findall(r"#[0-9a-f]{6}", svg)) <= {"#ffffff"}, figure.name


def test_ids_are_unique_on_a_page_and_references_resolve(drawn):
    page = "".join(svg for figure in drawn for svg in canvas.to_svgs(figure))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_bytes_depend_on_the_arrays_alone():
    """Not on the user's matplotlibrc, not on what was drawn before."""
    figure = figures.gap_spectrum({"base": np.arange(5.0)})
    once = canvas.to_svgs(figure), canvas.to_png(figure)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert (canvas.to_svgs(figure), canvas.to_png(figure)) == once
        assert mpl.rcParams["font.size"] == 30


def test_png_holds_all_panels_on_white(drawn):
    for figure in drawn[:3]:
        image = Image.open(io.BytesIO(canvas.to_png(figure, columns=2)))
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        columns = min(2, len(figure.panels))
        assert image.width == pytest.approx(160 * columns * figure.panel_inches[0], abs=1)
        assert not image.info.keys() & {"Software", "Creation Time"}


@pytest.mark.parametrize(("panels", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2)])
def test_panels_leave_few_holes(panels, columns, rows):
    figure = figures.gap_spectrum({"base": np.arange(5.0)})
    many = replace(figure, panels=figure.panels[:1] * panels)
    width, height = Image.open(io.BytesIO(canvas.to_png(many))).size
    assert (round(width / 160 / figure.panel_inches[0]), round(height / 160 / figure.panel_inches[1])) == (
        columns,
        rows,
    )


def test_colours_are_distinct_as_matplotlib_writes_them():
    """The page replaces them by their text, so two roles must never share one."""
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert all(re.fullmatch("#[0-9a-f]{6}", value) for value in COLOURS.values())
