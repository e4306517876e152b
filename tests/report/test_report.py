"""The report page: whole, without anything from elsewhere, true to the tables, and sound in a real browser."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from tiny_suite import Finished, finished

from risfast.evaluate.collected import Key
from risfast.evaluate.figures import Interval
from risfast.evaluate.methods import Methods
from risfast.evaluate.tables import mismatch_rows
from risfast.report.charts import Axis, Chart, heatmap, legend, typical_scenes
from risfast.report.style import COLOUR, Series, number
from risfast.report.tables import Change, Number

VOID = {"meta", "link", "img", "br"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """Elements with their attributes; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory)


@pytest.fixture(scope="module")
def source(done: Finished) -> str:
    return done.outcome.report.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_its_links_lead_somewhere(source: str) -> None:
    page = Page(source)
    assert page.open == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(links) == 13
    assert {link.lstrip("#") for link in links} <= set(ids)


def test_nothing_comes_from_elsewhere(source: str) -> None:
    page = Page(source)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "xlink:href", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"@import|url\(|https?://", source)


def test_every_figure_has_a_caption_and_every_picture_a_description(source: str) -> None:
    page = Page(source)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == tags.count("figcaption") > 8
    assert tags.count("table") == tags.count("caption") > 5
    assert all(a.get("alt") for tag, a in page.elements if tag == "img")
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) > 15
    assert all(a.get("aria-label") for a in charts)


def test_the_pictures_are_whole_pngs_of_the_map(source: str) -> None:
    images = [a["src"] for tag, a in Page(source).elements if tag == "img"]
    assert len(images) == 6  # best, median and worst for two numbers of snapshots
    for image in images:
        data = base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", data[16:24]) == (241, 121)
        assert data.endswith(b"IEND\xaeB`\x82")


def without_names(source: str) -> str:
    """Cells without the head of their column, which narrow screens show."""
    return re.sub(r' data-name="[^"]*"', "", source)


def test_the_headline_table_shows_the_numbers_of_the_headline_rows(done: Finished, source: str) -> None:
    for row in done.outcome.headline:
        if row["name"] in ("f1", "f1_low_snr", "near_recall", "median"):
            assert Number(Interval(row["value"], row["value_low"], row["value_high"])).html() in source
            assert f'<td class="bound">{row["bound"]:.3f}</td>' in without_names(source)


def test_the_robustness_table_shows_both_bounds(done: Finished, source: str) -> None:
    sets = done.config.sets(Methods(done.config.model))
    rows = mismatch_rows(done.collected, sets, done.config.snapshots)
    known = [row for row in rows if row["mismatched_sources"]]
    assert len(known) == 2 * 8
    for row in rows:
        cells = [f"{row['implied_recall']:.3f}", "\u2013", f"{row['median_bound_m']:.2f}"]
        if row["mismatched_sources"]:
            cells[1:] = [f"{row['mismatched_recall']:.3f}", f"{cells[2]} \u2192 {row['median_mismatched_m']:.2f}"]
        assert "".join(f'<td class="bound">{cell}</td>' for cell in cells) in without_names(source)


def test_the_page_says_what_made_it(done: Finished, source: str) -> None:
    text = "".join(Page(source).text)
    assert "risfast evaluate --suite all --scenes 6 --snapshots 8 5 --seed 3" in text
    assert str(done.results.folder) not in source


def test_best_median_and_worst_are_in_the_order_of_gospa(done: Finished) -> None:
    best, median, worst = typical_scenes(done.collected, 8, "localizer")
    squared = done.collected.scores[Key("main", 0, 8, "localizer")].gospa.sum(1)
    assert squared[best.scene] == pytest.approx(squared.min())
    assert squared[worst.scene] == pytest.approx(squared.max())
    assert sorted(squared)[2] - 1e-6 <= squared[median.scene] <= sorted(squared)[3] + 1e-6


# ---- charts

SERIES = Series("a < b", "c0", "-", "o")


def svg(text: str) -> ET.Element:
    """Without the prefix that HTML does not need to be told of."""
    return ET.fromstring(text.replace("xlink:href", "href"))


def chart() -> Chart:
    return Chart("t", Axis("x", 0, 10, (0, 5, 10)), Axis("y", 0, 1, (0, 1)))


def test_points_lie_where_their_values_are() -> None:
    drawn = chart()
    values = [Interval(0.0, 0.0, 0.1), Interval(0.5, 0.4, 0.6), Interval(1.0, math.nan, math.nan)]
    drawn.points([0, 5, 10], values, SERIES)
    root = svg(drawn.svg())
    marks = list(root.iter("use"))
    x, y = np.array([(float(mark.get("x")), float(mark.get("y"))) for mark in marks]).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert y[0] - y[1] == pytest.approx(y[1] - y[2])
    assert y[2] < y[0]  # up is more
    bars = [p for p in root.iter("path") if "opacity: 0.6" in p.get("style", "")]
    assert len(bars) == 2
    assert marks[0].find("title").text.startswith("a < b: 0")


def test_a_line_is_broken_where_there_is_no_value() -> None:
    drawn = chart()
    drawn.line([0, 1, 2, 3], [0.1, math.nan, 0.2, 0.3], SERIES)
    (path,) = [p for p in svg(drawn.svg()).iter("path") if "var(--c0)" in p.get("style", "")]
    assert re.findall(r"[ML]", path.get("d")) == ["M", "M", "L"]


def test_values_beyond_an_axis_stay_at_its_end() -> None:
    drawn = Chart("t", Axis("x", 0, 1, (0, 1)), Axis("y", 0.01, 10, (0.01, 10), logarithmic=True))
    drawn.points([0, 0.5, 1], [Interval(v, v, v) for v in (0.0, math.sqrt(0.01 * 10), 100.0)], SERIES)
    y = [float(mark.get("y")) for mark in svg(drawn.svg()).iter("use")]
    assert y == pytest.approx([300 - 42, (300 - 42 + 26) / 2, 26])


def test_charts_take_their_colours_from_the_page() -> None:
    drawn = chart()
    drawn.line([0, 1], [0, 1], SERIES)
    assert not set(COLOUR.values()) & set(re.findall("#[0-9a-f]{6}", drawn.svg()))


def test_heat_map_shows_every_number_and_a_dash_where_there_is_none() -> None:
    root = svg(heatmap("t", [[0.0, 1.0], [math.nan, 0.5]], ["a", "b"], ["c", "d"], ("x", "y")))
    texts = [t.text for t in root.iter("text") if "12.5px" in t.get("style")]
    assert texts == ["0.00", "1.00", "\u2013", "0.50"]
    fills = [p.get("style") for p in root.iter("path") if "var(--card)" in p.get("style")]
    assert len(fills) == len(set(fills)) == 4


def test_legend_names_every_series_safely() -> None:
    text = legend([SERIES, Series("bound", "bound", "--")])
    assert "a &lt; b" in text
    assert text.count("<li>") == 2


def test_numbers_have_a_true_minus_and_nothing_is_a_dash() -> None:
    assert (number(-5.0), number(math.nan), number(0.5)) == ("\u22125", "\u2013", "0.5")


@pytest.mark.parametrize(
    ("value", "less", "style"),
    [
        (Interval(0.1, 0.05, 0.15), False, "better"),
        (Interval(-0.1, -0.15, -0.05), False, "worse"),
        (Interval(-0.1, -0.15, -0.05), True, "better"),
        (Interval(0.1, 0.05, 0.15), True, "worse"),
        (Interval(0.1, -0.05, 0.15), False, None),
    ],
)
def test_differences_are_coloured_where_their_interval_excludes_zero(
    value: Interval, less: bool, style: str | None
) -> None:
    text = Change(value, less_is_better=less).html()
    assert re.findall(r'class="(\w+)"', text) == ([style] if style else [])


# ---- in a browser

PROBE = """<script>addEventListener("load", () => {
  const found = {images: document.images.length, loaded: 0, wide: document.documentElement.scrollWidth - innerWidth,
    height: document.documentElement.scrollHeight, empty: 0, ground: getComputedStyle(document.body).backgroundColor,
    requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length};
  found.cut = [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1).length;
  for (const image of document.images) if (image.complete && image.naturalWidth > 0) found.loaded++;
  for (const one of document.querySelectorAll("svg.chart, img, table"))
    if (one.getBoundingClientRect().width < 100 || one.getBoundingClientRect().height < 50) found.empty++;
  document.body.dataset.found = JSON.stringify(found);
});</script></body>"""


def browse(source: str, tmp_path: Path, *options: str) -> tuple[dict, str]:
    """What a browser makes of the page, and its messages."""
    assert CHROMIUM is not None
    page = tmp_path / "page.html"
    page.write_text(source.replace("</body>", PROBE), encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", *options),
        *("--virtual-time-budget=5000", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:]
    return json.loads(found.group(1).replace("&quot;", '"')), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_in_a_browser_everything_loads_fits_and_is_silent(source: str, tmp_path: Path, width: int) -> None:
    found, messages = browse(source, tmp_path, f"--window-size={width},900")
    assert found["images"] == found["loaded"] == 6
    assert found["requests"] == 0
    assert found["empty"] == 0
    assert found["wide"] <= 0
    assert found["cut"] == 0  # no table is wider than its box
    assert found["height"] > 3000
    assert "CONSOLE" not in messages


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser_that_likes_the_dark_the_ground_is_dark(source: str, tmp_path: Path) -> None:
    def brightness(*options: str) -> int:
        found, _ = browse(source, tmp_path, *options)
        return sum(map(int, re.findall(r"\d+", found["ground"])[:3]))

    assert brightness() > 600
    assert brightness("--force-dark-mode") < 150
