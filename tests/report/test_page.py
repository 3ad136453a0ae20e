"""The two renderings of a page: they say the same, load nothing, and let no text through as markup."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline_lib.report import figures, page
from pipeline_lib.report.page import (
    Cell,
    Drawing,
    Example,
    Fact,
    Fold,
    Gallery,
    Page,
    Points,
    Row,
    Section,
    Table,
    Text,
)

EVIL = "<script>alert('x')</script> | *a* [b](c)"
TABLE = Table(
    ("percent", "base", "difference"),
    (
        page.group("eval"),
        Row((Cell(f"name {EVIL}"), Cell("20.6", ("16.7", "24.9")), Cell("+5.0", None, "rose")), "strong"),
    ),
    note="A note.",
)
DOCUMENT = Page(
    f"Title {EVIL}",
    "`code` and **strong**",
    (
        Section(
            "First",
            (
                Text("The lead.", lead=True),
                Points(((f"it rose {EVIL}", "rose"), ("it did not", "still"))),
                TABLE,
                Drawing(figures.gap_spectrum({"base": np.arange(3.0)})),
                Gallery("Best", (Example("better-1", b"\xff\xd8jpeg", EVIL, "rose", ("place 9 → 1",)),)),
                Fold("More", (Text("Folded.", quiet=True),)),
            ),
        ),
        Section("my_set-2, ranked on", (Text("The second."),)),
    ),
    (Fact("base model", "`name` <b>"),),
)


class Reader(HTMLParser):
    """Collects tags and text, and checks that elements close in order."""

    VOID = frozenset({"meta", "img", "path", "use", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_html_is_sound_and_loads_nothing():
    html = page.to_html(DOCUMENT)
    reader = read(html)
    for tag, attributes in reader.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"viewport", "color-scheme"} <= {a.get("name") for t, a in reader.tags if t == "meta"}


def test_texts_are_escaped_in_html():
    html = page.to_html(DOCUMENT)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4
    assert "<code>code</code> and <strong>strong</strong>" in html


def test_both_renderings_hold_every_text():
    text = " ".join(" ".join(read(page.to_html(DOCUMENT)).text).split())
    markdown = page.to_markdown(DOCUMENT)
    for words in (
        "The lead.",
        "it did not",
        "percent",
        "20.6",
        "+5.0",
        "A note.",
        "place 9 → 1",
        "Folded.",
        "Best",
        "More",
    ):
        assert words in text
        assert words in markdown
    assert "16.7 to 24.9" in text
    assert "20.6 [16.7, 24.9]" in markdown


def test_an_arrow_is_not_parted_from_the_number_after_it():
    """A narrow cell breaks before the arrow; between names it breaks anywhere."""
    assert page._inline_html("0.1 → 0.3, image → text") == "0.1 →\u00a00.3, image → text"


def test_facts_stand_below_the_title():
    html, markdown = page.to_html(DOCUMENT), page.to_markdown(DOCUMENT)
    assert "<dt>base model</dt><dd><code>name</code> &lt;b&gt;</dd>" in html.split("</header>")[0]
    assert "- **base model**: `name` <b>" in markdown.split("## First")[0]


def test_contents_lead_to_every_section():
    """In the HTML to its id, in the Markdown to the anchor that GitHub gives its heading."""
    reader, markdown = read(page.to_html(DOCUMENT)), page.to_markdown(DOCUMENT)
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    sections = [f"#{attributes['id']}" for tag, attributes in reader.tags if tag == "section"]
    assert links == sections == ["#first", "#my_set-2-ranked-on"]
    assert "\n- [First](#first)\n- [my_set-2, ranked on](#my_set-2-ranked-on)\n" in markdown
    without = dataclasses.replace(DOCUMENT, contents=False)
    assert "<nav" not in page.to_html(without)
    assert "](#" not in page.to_markdown(without)


def test_markdown_tables_keep_their_columns():
    """A pipe in a name does not open a column."""
    rows = [line for line in page.to_markdown(DOCUMENT).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


def test_markdown_points_to_the_files_that_image_files_returns():
    files = page.image_files(DOCUMENT)
    assert set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.to_markdown(DOCUMENT))) == set(files)
    assert files["examples/better-1.jpg"] == b"\xff\xd8jpeg"
    assert files["figures/gap_spectrum.png"].startswith(b"\x89PNG")


def test_terminal_table_is_aligned():
    lines = page.to_terminal(TABLE).splitlines()
    assert len({len(line.rstrip()) for line in lines[1:2]}) == 1
    assert lines[0].startswith("percent")
    assert "20.6 [16.7, 24.9]" in lines[-1]
    assert lines[-1].endswith("+5.0")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (page.percent(0.20641), "20.6"),
        (page.points(0.0312), "+3.1"),
        (page.points(-0.0312), "−3.1"),
        (page.points(-0.0001), "0.0"),
        (page.number(0.08512), "0.085"),
        (page.number(-2.31), "−2.310"),
        (page.number(123.456), "123.5"),
        (page.number(None), "–"),
        (page.number(float("nan")), "–"),
        (page.p_value(0.0004), "<.001"),
        (page.p_clause(0.0004), "p\u00a0< 0.001"),
        (page.p_clause(0.0123), "p\u00a0= 0.012"),
        (page.p_value(0.0123), "0.012"),
        (page.p_value(0.0499), "0.0499"),
        (page.p_value(0.0501), "0.0501"),
        (page.points(float("nan")), "–"),
        (page.p_value(0.234), "0.23"),
        (page.level(0.95), "95\u00a0%"),
        (page.level(0.975), "97.5\u00a0%"),
    ],
)
def test_numbers(found, expected):
    assert found == expected
