"""The figure of gain against loss: what stands where, and what is named."""

from matplotlib.figure import Figure as Canvas

from pipeline_lib.report import trade_off
from pipeline_lib.report.trade_off import Place


def place(label, x, y, width=1.0, **options):
    return Place(
        label, label, options.pop("kind", label), (x, x - width, x + width), (y, y - width, y + width), **options
    )


NEAR = [
    place("a", -1, 1, seeds=((-1.5, 1), (-0.5, 1)), mixes=((0, 0), (0.5, 1), (-1, 1)), gap=0.254),
    place("b", 0.5, 0.2, kind="x"),
    place("c", 0.8, 0.9, kind="x"),
]
FAR = place("far", -30, -20)


def drawn(figure):
    found = {}
    for panel in figure.panels:
        axes = Canvas(figsize=figure.panel_inches, layout="constrained").subplots()
        panel(axes)
        found[axes.get_title()] = axes
    return found


def names(axes):
    return {text.get_text() for text in axes.texts}


def figure(places, joined=()):
    return trade_off.trade_off({"eval": places}, joined, confidence="95 %", note="A note.")


def test_marks_intervals_seeds_mixes_and_lines_stand_where_they_were_measured():
    axes = drawn(figure(NEAR, [["b", "c"]]))["eval"]
    lines = {tuple(map(tuple, line.get_xydata().tolist())) for line in axes.lines}
    for one in NEAR:
        (x, *across), (y, *up) = one.zero_shot, one.retrieval
        assert {((x, y),), tuple((end, y) for end in across), tuple((x, end) for end in up)} <= lines
    assert {NEAR[0].seeds, NEAR[0].mixes, ((0.5, 0.2), (0.8, 0.9)), ((0, 0),)} <= lines
    assert names(axes) == {"base", "a (0.25)", "b", "c"}


def test_one_kind_has_one_marker_and_colour_and_no_two_kinds_share_both():
    axes = drawn(figure(NEAR))["eval"]
    styles = {
        one.label: {
            (line.get_marker(), line.get_color())
            for line in axes.lines
            if line.get_xydata().tolist() == [list(one.point)] and line.get_markersize() == 8
        }
        for one in NEAR
    }
    assert styles["a"] != styles["b"] == styles["c"]
    assert len({trade_off._style(number) for number in range(40)}) == 40


def test_what_lies_far_away_gets_a_panel_of_its_own():
    """Else all others would be one blot; nothing is left out, and each is named once."""
    panels = drawn(figure([*NEAR, FAR]))
    near, everything = panels["eval, near the base"], panels["eval, all"]
    assert names(near) == {"base", "a (0.25)", "b", "c"}
    assert names(everything) == {"base", "far"}
    assert near.get_xlim()[0] > -10
    assert everything.get_xlim()[0] < -30
    assert list(drawn(figure(NEAR))) == ["eval"]


def test_the_caption_tells_what_is_there():
    with_all, with_little = figure(NEAR, [["b", "c"]]).caption, figure(NEAR[1:]).caption
    for words in ("In brackets: the gap", "WiSE-FT", "learning rate alone"):
        assert words in with_all
        assert words not in with_little
