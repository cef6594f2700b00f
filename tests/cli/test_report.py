"""The report: pixels of overlays, the parsed page, and its sorting in a real browser."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO, StringIO

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skmkd._cli import report
from skmkd._cli.report import Entry, bars, histogram, overlay, ticks, write_report

NAN = float("nan")
VOID = {"meta", "img", "wbr"}
EVIL = '<script>alert(1)</script> & "it\'s".png'
PICTURE = Image.new("RGB", (600, 300), "teal")
ENTRIES = [
    Entry("a/img10.png", 0.5, 0.25, PICTURE),
    Entry("img2.png", -2.0, 0.0123, PICTURE),
    Entry(EVIL, NAN, NAN, None),
    Entry("img1.png", 10.0, 1.0, Image.new("L", (3, 9))),
    Entry("naïve\udcff.png", -10.0, 1 / 81, Image.new("RGBA", (20, 300))),
]


class Page(HTMLParser):
    """Parsed page; fails if tags are not properly nested and closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, tag, name):
        return [attrs[name] for each, attrs in self.tags if each == tag and name in attrs]


def written(entries=ENTRIES, threshold=0.0, title="Report", **kwargs) -> str:
    stream = StringIO()
    write_report(stream, entries, threshold, title, **kwargs)
    return stream.getvalue()


def test_overlay_colours_only_what_exceeds_the_threshold():
    image = np.full((1, 6), 0.5)
    single = np.array([[1.0, 2.0, 2 + 1e-9, 2.5, 3.0, 99.0]])
    pixels = np.asarray(overlay(image, single, 2.0)).astype(int)
    grey, yellow, orange, red = (128,) * 3, (204, 204, 51), (204, 128, 51), (204, 51, 51)
    assert np.abs(pixels[0] - [grey, grey, yellow, orange, red, red]).max() <= 1


@pytest.mark.parametrize(("threshold", "red"), [(0.0, 1.0), (-4.0, -2.0), (0.5, 0.75)])
def test_ramp_ends_half_the_threshold_above_it(threshold, red):
    single = np.array([[red - 0.01, red, red + 5]])
    (before, at, beyond) = np.asarray(overlay(np.zeros((1, 3)), single, threshold))[0].tolist()
    assert before[1] > 0
    assert at == beyond == [153, 0, 0]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(math.inf, "....."), (-math.inf, "rrrrr"), (NAN, "....."), (5e-324, ".yrrr"),
     (1e-310, ".rrrr"), (1e300, "....r"), (-1e300, "rrrrr")],
)  # fmt: skip
def test_overlay_of_extreme_thresholds(threshold, expected):
    single = np.array([[0, 1e-40, 1, 3e38, math.inf]], np.float32)
    found = np.asarray(overlay(np.zeros((1, 5), np.float32), single, threshold))[0]
    colours = {".": (0, 0, 0), "y": (153, 153, 0), "r": (153, 0, 0)}
    assert_array_equal(found, [colours[each] for each in expected])


def test_overlay_of_colours_transparency_and_nan():
    colour = np.random.default_rng(0).random((4, 5, 3))
    expected = np.rint(255 * colour)
    nothing = np.full((4, 5), NAN)
    picture = overlay(colour, nothing, 0.5)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    assert np.abs(np.asarray(picture) - expected).max() <= 1
    clear = np.dstack([colour, np.zeros((4, 5))])
    assert_array_equal(np.asarray(overlay(clear, nothing, 0.5)), 255)
    half = np.dstack([np.zeros((4, 5, 3)), np.full((4, 5), 0.6)])
    assert_array_equal(np.asarray(overlay(half, nothing, 0.5)), 102)


def test_page_is_well_formed_and_loads_nothing():
    text = written()
    page = Page(text)
    assert text.isascii()
    assert "default-src 'none'" in page.attributes("meta", "content")[0]
    markup = re.sub(r"base64,[\w+/=]*", "", text)
    assert not re.search(r"http(?!-equiv)|//|url\(|@import|\bhref|fetch", markup, re.I)
    assert all(source.startswith("data:image/") for source in page.attributes("img", "src"))
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}


def test_rows_are_sorted_by_score_with_unreadable_files_last():
    (_, *rows) = Page(written()).rows
    assert [row[0] for row in rows] == [
        "naïve\N{REPLACEMENT CHARACTER}.png", "img2.png", "a/img10.png", "img1.png", EVIL,
    ]  # fmt: skip
    assert [row[1] for row in rows] == ["-10", "-2", "0.5", "10", "–"]
    assert [row[3] for row in rows] == ["0.012", "0.012", "0.25", "1", "–"]
    assert [row[4] for row in rows] == ["anomaly"] * 2 + ["normal"] * 2 + ["unreadable"]


def test_decision_is_relative_to_the_threshold():
    (_, *rows) = Page(written([Entry("a", 0.25, NAN, None), Entry("b", 1.0, NAN, None)], 0.25)).rows
    assert [row[2:5] for row in rows] == [["+0", "–", "normal"], ["+0.75", "–", "normal"]]


def test_summary_counts():
    page = Page(written())
    assert page.texts["b"] == ["5", "2", "1", "0"]
    assert [item.strip() for item in page.texts["li"]] == [
        "images", "anomalies", "unreadable", "threshold"
    ]  # fmt: skip
    assert Page(written([Entry("a", -1.0, NAN, None)])).texts["li"][:2] == [" image", " anomaly"]


def test_names_and_title_are_escaped():
    text = written(title="<b>&amp; $title")
    page = Page(text)
    assert page.texts["title"][0] == page.texts["h1"][0] == "<b>&amp; $title"
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert" not in text
    quoted = Page(written([Entry('" onerror="alert(1)', 1.0, NAN, PICTURE)]))
    assert quoted.attributes("img", "alt") == ['Overlay of " onerror="alert(1)']
    assert quoted.attributes("img", "onerror") == []


def test_pictures_decode_and_are_limited_in_size_and_number():
    sources = Page(written()).attributes("img", "src")
    sizes = [Image.open(BytesIO(b64decode(each.split(",")[1]))).size for each in sources]
    assert sizes == [(17, 256), (256, 128), (256, 128), (3, 9)]
    fewer = Page(written(shown=2))
    assert len(fewer.attributes("img", "src")) == 2
    assert "At most the 2 worst images" in fewer.texts["caption"][0]
    assert PICTURE.size == (600, 300)  # the caller's picture is not changed


def test_the_report_of_many_images_is_small():
    rng = np.random.default_rng(0)
    n = 20_000
    scores = rng.permutation(n) - 50.0
    scores[:7] = NAN
    folder = "/data/line 3/camera 2/2026-11-27/"
    pixels = rng.normal(128, 40, (100, 300, 300)).clip(0, 255).astype(np.uint8)  # fine textures
    textures = [Image.fromarray(each) for each in pixels]
    order = np.argsort(scores)
    shown = dict(zip(order[:100].tolist(), textures, strict=True))
    entries = [Entry(f"{folder}{i:06}.jpg", s, NAN, shown.get(i)) for i, s in enumerate(scores)]
    text = written(entries)
    assert len(text) < 3_000_000
    page = Page(text)
    assert [row[0] for row in page.rows[1:]] == [f"{folder}{i:06}.jpg" for i in order[:1000]]
    assert len(page.attributes("img", "src")) == 100
    assert page.texts["b"][:3] == ["20000", str((scores < 0).sum()), "7"]
    sentence = "The 1000 images with the lowest scores are listed; 19000 others are not."
    assert sentence in page.texts["caption"][0]
    assert "so is the table that skmkd score writes" in page.texts["caption"][0]
    counts = [int(count) for count in page.attributes("title", "data-count")]
    assert sum(counts) == n - 7  # the histogram is that of all


def test_images_without_a_row_are_counted(monkeypatch):
    assert "are listed" not in written()
    monkeypatch.setattr(report, "LISTED", 4)
    assert "4 images with the lowest scores are listed; 1 other is not." in written()


SCORES = {
    "one": [3.0],
    "one anomaly": [-3.0],
    "equal": [1.5] * 7,
    "at the threshold": [0.1] * 3,
    "next to the threshold": [math.nextafter(0.1, -1), 0.1, math.nextafter(0.1, 1)],
    "many": np.random.default_rng(0).normal(size=5000),
    "outlier": [*np.linspace(0, 1, 50), -1e6],
    "tiny": [1e-300, 5e-324, 0.0],
    "some unreadable": [NAN, 1.0, NAN, -1.0],
    "subnormal": [5e-324, 1e-323, -5e-324],
    "largest": [-1.7e308, 1.7e308, 0.0],
    "all large": [1e305, 1.1e305],
}


@pytest.mark.parametrize("threshold", [0.1, 0.0, -2.0, 1.5, 5e-324, -1.7e308])
@pytest.mark.parametrize("name", SCORES)
def test_bars_contain_every_score_on_its_side(name, threshold):
    scores = np.array(SCORES[name])
    page = Page(written([Entry("a", score, NAN, None) for score in scores], threshold))
    counts = [int(count) for count in page.attributes("title", "data-count")]
    sides = page.attributes("rect", "class")
    anomalous = sum(n for n, side in zip(counts, sides, strict=True) if side == "anomaly")
    assert sum(counts) == (~np.isnan(scores)).sum()
    assert anomalous == (scores < threshold).sum()
    for name in ("x", "y", "width", "height"):
        numbers = [float(value) for value in page.attributes("rect", name)]
        assert 0 <= min(numbers) <= max(numbers) <= 640
    edges, _ = bars(scores[~np.isnan(scores)], threshold)
    assert np.clip(threshold, -1e300, 1e300) in edges


@pytest.mark.parametrize("threshold", [NAN, math.inf, -math.inf])
def test_a_threshold_that_is_no_number_is_not_drawn(threshold):
    entries = [Entry(str(score), score, NAN, None) for score in (-1.0, 2.0, 2.5)]
    page = Page(written(entries, threshold))
    assert "threshold" not in page.attributes("path", "class")
    counts = [int(count) for count in page.attributes("title", "data-count")]
    assert sum(counts) == 3
    label = "unknown" if math.isnan(threshold) else "anomaly" if threshold > 0 else "normal"
    assert [row[4] for row in page.rows[1:]] == [label] * 3
    if label != "unknown":
        assert set(page.attributes("rect", "class")) == {label}


def test_infinite_scores_are_listed_and_counted_but_not_drawn():
    scores = [math.inf, -math.inf, 1.0, NAN, -1.0]
    page = Page(written([Entry(str(score), score, NAN, PICTURE) for score in scores]))
    assert [row[0] for row in page.rows[1:]] == ["-inf", "-1.0", "1.0", "inf", "nan"]
    verdicts = ["anomaly", "anomaly", "normal", "normal", "unreadable"]
    assert [row[4] for row in page.rows[1:]] == verdicts
    assert page.attributes("td", "data-value")[0::3] == ["-Infinity", "-1.0", "1.0", "Infinity",
                                                         "NaN"]  # fmt: skip
    assert page.texts["b"] == ["5", "2", "1", "0", "2"]
    assert page.texts["p"] == [" infinite scores are not in the histogram."]
    assert sum(int(count) for count in page.attributes("title", "data-count")) == 2


@pytest.mark.parametrize("scores", [[], [NAN, NAN]])
def test_no_scores_no_histogram(scores):
    page = Page(written([Entry("a", score, NAN, None) for score in scores]))
    assert "No image has a finite score." in page.texts["p"]
    assert len(page.rows) == 1 + len(scores)
    assert histogram(np.array([]), 0.0) == "<p>No image has a finite score.</p>"


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (-0.37, 0.112), (1e-9, 3e-9), (-5e7, 2e8), (-1e300, 1e300), (-1e-300, 1e-300)],
)
def test_ticks_are_few_round_and_within(low, high):
    found = list(ticks(low, high))
    assert 2 <= len(found) <= 6
    slack = 1e-9 * (high - low)
    assert low - slack <= found[0] < found[-1] <= high + slack
    assert all(len(f"{tick:.6g}".strip("-0.").split("e")[0].strip("0.")) <= 2 for tick in found)


PROBE = """<script>
addEventListener("error", event => document.title = "error: " + event.message);
const seen = [], buttons = document.querySelectorAll("th button");
for (const place of [1, 0, 2, 2, 3, 4]) {
  buttons[place].click();
  const sorted = [...document.querySelectorAll("[aria-sort]")];
  seen.push([...document.querySelectorAll("tbody th")].map(cell => cell.textContent[3]).join("")
    + " " + sorted.map(cell => cell.textContent + " " + cell.getAttribute("aria-sort")).join());
}
document.body.append(Object.assign(document.createElement("pre"), {textContent: seen.join("; ")}));
</script></body>"""


def test_sorting_in_a_browser(tmp_path):
    names = ("google-chrome", "chromium", "chromium-browser", "headless_shell")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        assert "CI" not in os.environ, "a browser is required in CI"
        pytest.skip(f"none of {', '.join(names)} is installed")
    figures = {
        "2": (-2.0, 0.3), "0": (NAN, NAN), "10": (math.inf, 0.2), "4": (9.0, 1.0),
        "5": (-math.inf, 0.9),
    }  # fmt: skip
    entries = [Entry(f"img{name}.png", *each, PICTURE) for name, each in figures.items()]
    file = tmp_path / "report.html"
    file.write_text(written(entries).replace("</body>", PROBE), encoding="ascii")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user",
        "--enable-logging=stderr", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in run.stderr  # no error, and no violation of the policy
    page = Page(run.stdout)
    assert page.texts["title"][0] == "Report"
    assert page.texts["pre"][0].split("; ") == [
        "14250 Score descending",
        "02451 Path ascending",  # 10 after 5
        "52410 Decision ascending",  # unreadable last in both directions
        "14250 Decision descending",
        "12540 p-value ascending",
        "25140 Verdict ascending",
    ]
