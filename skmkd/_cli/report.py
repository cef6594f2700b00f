"""Scores and overlays of many images, as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from string import Template
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

OPACITY = 0.6  # of the colours over an image
THUMBNAIL = 256  # pixels of its longest side
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 220, 56, 16, 24, 46  # of the histogram, margins


class Entry(NamedTuple):
    """What the report says of one image.

    Parameters
    ----------
    path : str
        Where the image is; shown as text.
    score : float
        Higher = more normal; NaN if the image cannot be read.
    overlay : PIL.Image.Image or None
        What is pictured of the image, of any size; None pictures nothing.
    """

    path: str
    score: float
    overlay: Image.Image | None


def overlay(image: ArrayLike, single: ArrayLike, threshold: float) -> Image.Image:
    """Lay over an image what of its map exceeds the threshold.

    Parameters
    ----------
    image : array-like of shape (H, W), (H, W, 3) or (H, W, 4)
        Pixels from 0 to 1. Where they are transparent, white shows through.
    single : array-like of shape (H, W)
        Localization map, higher = more anomalous. NaN leaves the image as it is.
    threshold : float
        Where the colours begin, in the unit of the map: yellow at the threshold, red from half
        of it above it on, or from 1 above a threshold of 0 on.

    Returns
    -------
    picture : PIL.Image.Image
        RGB, of the image's size.

    Examples
    --------
    >>> from skmkd._cli.report import overlay
    >>> picture = overlay([[0, 0, 1]], [[0, 9, 1]], threshold=1)
    >>> [picture.getpixel((column, 0)) for column in range(3)]
    [(0, 0, 0), (153, 0, 0), (255, 255, 255)]
    """
    pixels = np.atleast_3d(np.asarray(image, dtype=np.float32))  # (H, W, 1 | 3 | 4)
    if pixels.shape[2] == 4:
        opaque = pixels[..., 3:]
        pixels = opaque * pixels[..., :3] + (1 - opaque)
    values = np.asarray(single, dtype=float)
    heat = np.clip((values - threshold) / (abs(threshold) / 2 or 1.0), 0, 1)
    colours = np.stack([np.ones_like(heat), 1 - heat, np.zeros_like(heat)], axis=-1)
    mixed = (1 - OPACITY) * pixels + OPACITY * colours
    shown = np.where((values > threshold)[..., None], mixed, pixels)  # (H, W, 3)
    return Image.fromarray(np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8))


def write_report(
    stream: TextIO, entries: Sequence[Entry], threshold: float, title: str, shown: int = 100
) -> None:
    """Write a page with a histogram of the scores and a table of the images, the worst first.

    The page holds its style, script and pictures, and forbids itself the network. It is ASCII,
    so that the encoding of the stream does not matter.

    Parameters
    ----------
    stream : text file
        Where to write.
    entries : sequence of Entry
        The images, in any order.
    threshold : float
        Images of lower scores are anomalies.
    title : str
        Heading of the page.
    shown : int, default=100
        How many of the worst images are pictured at most.
    """
    scores = np.array([entry.score for entry in entries], dtype=float)
    heading = HEAD.substitute(
        title=escape(title),
        n_images=counted(len(entries), "image", "images"),
        n_anomalies=counted(int((scores < threshold).sum()), "anomaly", "anomalies"),
        n_unreadable=f"<b>{int(np.isnan(scores).sum())}</b> unreadable",
        threshold=f"{threshold:.4g}",
        histogram=histogram(scores[np.isfinite(scores)], threshold),
        shown=shown,
    )
    stream.write(ascii_only(heading))
    for place, index in enumerate(np.argsort(scores, kind="stable")):  # NaN come last
        stream.write(ascii_only(table_row(entries[index], threshold, pictured=place < shown)))
    stream.write(TAIL)


def ascii_only(markup: str) -> str:
    """Spell other characters as references; names of files may hold what no encoding can."""
    return markup.encode("ascii", "xmlcharrefreplace").decode()


def counted(n: int, singular: str, plural: str) -> str:
    """Return a number and what it counts."""
    return f"<b>{n}</b> {singular if n == 1 else plural}"


def verdict(score: float, threshold: float) -> str:
    """Name what a score says of its image."""
    if math.isnan(score):
        return "unreadable"
    return "anomaly" if score < threshold else "normal"


def table_row(entry: Entry, threshold: float, *, pictured: bool) -> str:
    """Return the row of an image."""
    path, said = escape(entry.path), verdict(entry.score, threshold)
    cells = [f'<th scope="row">{path.replace("/", "/<wbr>")}</th>']
    for value, form in [(entry.score, ".4g"), (entry.score - threshold, "+.4g")]:
        text = "–" if math.isnan(value) else f"{value:{form}}"
        cells.append(f'<td data-value="{float(value)!r}">{text}</td>')
    cells.append(f'<td class="{said}">{said}</td>')
    picture = thumbnail(entry.overlay, path) if pictured and entry.overlay is not None else ""
    cells.append(f"<td>{picture}</td>")
    return f"<tr>{''.join(cells)}</tr>\n"


def thumbnail(picture: Image.Image, path: str) -> str:
    """Return a small copy of a picture, as an element that carries its own data."""
    small, file = picture.convert("RGB"), BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=90, subsampling=0)
    data = b64encode(file.getvalue()).decode()
    return f'<img alt="Overlay of {path}" src="data:image/jpeg;base64,{data}">'


def histogram(scores: np.ndarray, threshold: float) -> str:
    """Draw finite scores; no bar lies on both sides of the threshold."""
    if not len(scores):
        return "<p>No image has a score.</p>"
    edges, counts = bars(scores, threshold)
    low, high = edges[0], edges[-1]
    floor, tall = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def across(score: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (score - low) / (high - low)

    drawn = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            height = max(2, tall * count / counts.max())  # few among many stay visible
            said = "anomaly" if end <= threshold else "normal"
            drawn.append(
                f'<rect class="{said}" x="{across(start):.2f}" y="{floor - height:.2f}" '
                f'width="{max(1, across(end) - across(start) - 1):.2f}" height="{height:.2f}">'
                f'<title data-count="{count}">{start:.4g} to {end:.4g}: {count}</title></rect>'
            )
    for tick in ticks(low, high):
        drawn.append(f'<text x="{across(tick):.2f}" y="{floor + 18}">{tick + 0.0:.6g}</text>')
    at = across(threshold)
    anchor = "start" if at < WIDTH / 4 else "end" if at > 3 * WIDTH / 4 else "middle"
    return HISTOGRAM.substitute(
        drawn="\n".join(drawn), at=f"{at:.2f}", anchor=anchor, threshold=f"{threshold:.4g}",
        highest=counts.max(), left=LEFT, right=WIDTH - RIGHT, middle=(LEFT + WIDTH - RIGHT) / 2,
        top=TOP, floor=floor, half=TOP + tall / 2, width=WIDTH, height=HEIGHT,
    )  # fmt: skip


def bars(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return edges, of which the threshold is one, and how many scores lie between them."""
    wide = max(scores.max(), threshold) - min(scores.min(), threshold)
    step = (wide or abs(threshold) or 1.0) / np.clip(3 * len(scores) ** 0.5, 20, 60)
    step = max(step, np.spacing(abs(threshold)))
    places = np.floor((scores - threshold) / step).astype(int)  # below 0 = anomalous
    first, last = min(places.min(), -1), max(places.max(), 0)
    edges = threshold + step * np.arange(first, last + 2)
    return edges, np.bincount(places - first, minlength=last - first + 1)


def ticks(low: float, high: float) -> Iterator[float]:
    """Yield two to six round numbers from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(power * n for n in (1, 2, 5, 10) if (high - low) / (power * n) <= 5)
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield n * step


HISTOGRAM = Template("""\
<svg viewBox="0 0 $width $height" role="img" aria-label="Histogram of the scores">
$drawn
<path class="axis" d="M$left $top V$floor H$right"></path>
<path class="threshold" d="M$at $top V$floor"></path>
<text x="$at" y="16" style="text-anchor: $anchor">threshold $threshold</text>
<text x="$middle" y="$height" dy="-6">score (higher = more normal)</text>
<text x="$left" y="$top" dx="-6" dy="8" style="text-anchor: end">$highest</text>
<text x="$left" y="$floor" dx="-6" style="text-anchor: end">0</text>
<text transform="translate(14 $half) rotate(-90)">images</text>
</svg>""")

HEAD = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; background: Canvas; }
:root { --normal: #2f6fae; --anomaly: #c2410c; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --normal: #6cabe6; --anomaly: #fb8a4c; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
ul { display: flex; flex-wrap: wrap; gap: .25rem 2rem; padding: 0; list-style: none; }
svg { width: 100%; fill: currentColor; font-size: 11px; text-anchor: middle; }
rect.normal { fill: var(--normal); }
rect.anomaly { fill: var(--anomaly); }
.axis, .threshold { fill: none; stroke: currentColor; }
.threshold { stroke-dasharray: 5 3; stroke-width: 1.5; }
table { width: 100%; border-collapse: collapse; }
caption { text-align: left; padding: .5rem 0; }
tr > * { padding: .4rem .5rem; text-align: left; border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: Canvas; }
tbody th { font-weight: normal; overflow-wrap: anywhere; }
td[data-value] { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.anomaly { color: var(--anomaly); font-weight: bold; }
td.unreadable { font-style: italic; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; }
th button { cursor: pointer; white-space: nowrap; }
th button::after { content: " \\2195"; opacity: .5; }
[aria-sort] button::after { content: " \\2191"; opacity: 1; }
[aria-sort="descending"] button::after { content: " \\2193"; }
img { display: block; width: 10rem; height: 10rem; object-fit: contain; }
@media (max-width: 44em) {
  body { font-size: 14px; padding: .5rem; }
  svg { font-size: 14px; }
  table, caption, thead, tbody { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr 1fr 6rem; align-items: center; }
  tr { border-bottom: 1px solid var(--line); }
  tr > * { border: 0; padding: .2rem; }
  thead { position: sticky; top: 0; background: Canvas; }
  thead th { position: static; }
  tr > :first-child { grid-column: 1 / -1; }
  img { width: 100%; height: 6rem; }
}
@media (max-width: 30em) { svg { font-size: 20px; } }
</style>
</head>
<body>
<h1>$title</h1>
<ul><li>$n_images</li><li>$n_anomalies</li><li>$n_unreadable</li><li>threshold <b>$threshold</b>\
</li></ul>
$histogram
<table>
<caption>Decision = score &minus; threshold; anomalies are below 0. At most the $shown worst \
images are pictured, with what exceeds the threshold of their maps in yellow to red.</caption>
<thead><tr>
<th scope="col"><button type="button">Path</button></th>
<th scope="col" aria-sort="ascending"><button type="button">Score</button></th>
<th scope="col"><button type="button">Decision</button></th>
<th scope="col"><button type="button">Verdict</button></th>
<th scope="col">Overlay</th>
</tr></thead>
<tbody>
""")

TAIL = """\
</tbody>
</table>
<script>
"use strict";
const body = document.querySelector("tbody");
function sortBy(header) {
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const cell = row => row.cells[header.cellIndex];
  const byNumber = (a, b) => isNaN(a) - isNaN(b) || sign * (a - b);
  const byText = (a, b) => sign * a.localeCompare(b, undefined, { numeric: true });
  const compare = (a, b) => "value" in cell(a).dataset
    ? byNumber(Number(cell(a).dataset.value), Number(cell(b).dataset.value))
    : byText(cell(a).textContent, cell(b).textContent);
  [...body.rows].sort(compare).forEach(row => body.append(row));
  document.querySelector("[aria-sort]").removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
}
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sortBy(button.parentElement));
</script>
</body>
</html>
"""
