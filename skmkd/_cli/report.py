"""HTML report on many images: scores, decisions and overlays in one self-contained page."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

OPACITY = 0.6  # of the colours over an image
LISTED = 1000  # images that the table of the report has rows of
THUMBNAIL = 256  # longest side of a picture in the report, in pixels
QUALITY = 60  # of JPEG: a hundred pictures of fine textures take less than 3 MB
LARGEST, FINEST = 1e300, 1e-300  # numbers of a histogram's axis, whose differences are finite
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 220, 56, 16, 24, 46  # of the histogram; margins

HISTOGRAM = Template("""\
<svg viewBox="0 0 $width $height" role="img" aria-label="Histogram of the scores">
$drawn
<path class="axis" d="M$left $top V$floor H$right"></path>
$line
<text x="$middle" y="$height" dy="-6">score (higher = more normal)</text>
<text x="$left" y="$top" dx="-6" dy="8" style="text-anchor: end">$highest</text>
<text x="$left" y="$floor" dx="-6" style="text-anchor: end">0</text>
<text transform="translate(14 $half) rotate(-90)">images</text>
</svg>""")
THRESHOLD = Template("""\
<path class="threshold" d="M$at $top V$floor"></path>
<text x="$at" y="16" style="text-anchor: $anchor">threshold $threshold</text>""")


class Entry(NamedTuple):
    """One image of the report.

    Parameters
    ----------
    path : str
        Path of the image, shown as text.
    score : float
        Higher = more normal; NaN if the image has none, as one that cannot be read.
    p_value : float
        Small = anomalous; NaN if there is none.
    overlay : PIL.Image.Image or None
        Picture of the image, of any size; None for no picture.
    """

    path: str
    score: float
    p_value: float
    overlay: Image.Image | None


def overlay(image: ArrayLike, single: ArrayLike, threshold: float) -> Image.Image:
    """Colour the pixels of an image whose map exceeds the threshold.

    Parameters
    ----------
    image : array-like of shape (H, W), (H, W, 3) or (H, W, 4)
        Pixels from 0 to 1. Transparent pixels are blended with white.
    single : array-like of shape (H, W)
        Localization map, higher = more anomalous. Pixels where it is NaN are not coloured.
    threshold : float
        Start of the colour scale, in the unit of the map. Colours go from yellow at the threshold
        to red at ``threshold + abs(threshold) / 2``, or at 1 if the threshold is 0.

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
        alpha = pixels[..., 3:]
        pixels = alpha * pixels[..., :3] + (1 - alpha)
    values = np.asarray(single, dtype=np.float64)  # the threshold may be beyond float32
    shown = np.empty((*values.shape, 3), np.float32)
    shown[:] = pixels
    above = values > threshold
    span = min(abs(threshold) / 2 or 1.0, LARGEST)
    heat = np.clip(values[above] - max(threshold, -LARGEST), 0, span) / span
    colours = np.stack([np.ones_like(heat), 1 - heat, np.zeros_like(heat)], axis=-1)
    shown[above] = (1 - OPACITY) * shown[above] + OPACITY * colours
    return Image.fromarray(np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8))


def write_report(
    stream: TextIO, entries: Sequence[Entry], threshold: float, title: str, shown: int = 100
) -> None:
    """Write a page with a histogram of the scores and a table of the lowest scores, lowest first.

    The page contains its style, script and pictures, and its content security policy blocks all
    network access. It is pure ASCII, so it can be written in any encoding.

    Parameters
    ----------
    stream : text file
        File to write to.
    entries : sequence of Entry
        The images, in any order.
    threshold : float
        Images with a lower score are anomalies.
    title : str
        Heading of the page.
    shown : int, default=100
        Maximum number of pictures; the images with the lowest scores get one.
    """
    scores = np.array([entry.score for entry in entries], dtype=float)
    order = np.argsort(scores, kind="stable")[:LISTED]  # NaN last
    finite = np.isfinite(scores)
    rows = [table_row(entries[i], threshold, pictured=n < shown) for n, i in enumerate(order)]
    template = files("skmkd._cli").joinpath("report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=escape(title),
        n_images=counted(len(entries), "image", "images"),
        n_anomalies=counted(int((scores < threshold).sum()), "anomaly", "anomalies"),
        n_unreadable=f"<b>{int(np.isnan(scores).sum())}</b> unreadable",
        threshold=f"{threshold:.4g}",
        histogram=histogram(scores[finite], threshold),
        not_drawn=not_drawn(int((~finite & ~np.isnan(scores)).sum())),
        shown=shown,
        unlisted=unlisted(len(entries) - len(order)),
        rows="".join(rows),
    )
    stream.write(ascii_only(page))


def ascii_only(markup: str) -> str:
    """Replace other characters by references; file names may contain lone surrogates."""
    return markup.encode("ascii", "xmlcharrefreplace").decode()


def counted(n: int, singular: str, plural: str) -> str:
    """Return a number with its noun."""
    return f"<b>{n}</b> {singular if n == 1 else plural}"


def unlisted(n: int) -> str:
    """Return a sentence on the images that have no row."""
    if n == 0:
        return ""
    are = "other is" if n == 1 else "others are"
    return (
        f" The {LISTED} images with the lowest scores are listed; {n} {are} not. The "
        "histogram is of all images, and so is the table that skmkd score writes."
    )


def not_drawn(n: int) -> str:
    """Return a paragraph on the images that are missing in the histogram."""
    if n == 0:
        return ""
    return f"<p>{counted(n, 'infinite score is', 'infinite scores are')} not in the histogram.</p>"


def verdict(score: float, threshold: float) -> str:
    """Return the label of an image; without a threshold, it has none."""
    if math.isnan(score):
        return "unreadable"
    if math.isnan(threshold):
        return "unknown"
    return "anomaly" if score < threshold else "normal"


def table_row(entry: Entry, threshold: float, *, pictured: bool) -> str:
    """Return the table row of an image."""
    path, label = escape(entry.path), verdict(entry.score, threshold)
    cells = [f'<th scope="row">{path.replace("/", "/<wbr>")}</th>']
    decision = float(entry.score) - float(threshold)
    for value, form in [(entry.score, ".4g"), (decision, "+.4g"), (entry.p_value, ".2g")]:
        text = "–" if math.isnan(value) else f"{value:{form}}"
        cells.append(f'<td data-value="{script_number(value)}">{text}</td>')
    cells.append(f'<td class="{label}">{label}</td>')
    picture = img_element(entry.overlay, path) if pictured and entry.overlay is not None else ""
    cells.append(f"<td>{picture}</td>")
    return f"<tr>{''.join(cells)}</tr>\n"


def script_number(value: float) -> str:
    """Return a number as JavaScript reads it."""
    return f"{float(value)!r}".replace("inf", "Infinity").replace("nan", "NaN")


def img_element(picture: Image.Image, path: str) -> str:
    """Return a picture, scaled down, as an img element with a data URL."""
    small, file = picture.convert("RGB"), BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=QUALITY, subsampling=0)
    data = b64encode(file.getvalue()).decode()
    return f'<img alt="Overlay of {path}" src="data:image/jpeg;base64,{data}">'


def histogram(scores: np.ndarray, threshold: float) -> str:
    """Return a histogram of finite scores as SVG; the threshold is an edge between two bars.

    One that is not finite is not drawn.
    """
    if not len(scores):
        return "<p>No image has a finite score.</p>"
    drawn_at = threshold if math.isfinite(threshold) else float(scores.min())
    edges, counts = bars(scores, drawn_at)
    low, high = edges[0], edges[-1]
    floor, tall = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def across(score: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (score - low) / (high - low)

    drawn = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            height = max(2, tall * count / counts.max())  # at least 2, so that it can be seen
            label = "anomaly" if end <= threshold else "normal"
            drawn.append(
                f'<rect class="{label}" x="{across(start):.2f}" y="{floor - height:.2f}" '
                f'width="{max(1, across(end) - across(start) - 1):.2f}" height="{height:.2f}">'
                f'<title data-count="{count}">{start:.4g} to {end:.4g}: {count}</title></rect>'
            )
    for tick in ticks(low, high):
        drawn.append(f'<text x="{across(tick):.2f}" y="{floor + 18}">{tick + 0.0:.6g}</text>')
    at, line = across(min(max(drawn_at, low), high)), ""
    if math.isfinite(threshold):
        anchor = "start" if at < WIDTH / 4 else "end" if at > 3 * WIDTH / 4 else "middle"
        line = THRESHOLD.substitute(
            at=f"{at:.2f}", anchor=anchor, threshold=f"{threshold:.4g}", top=TOP, floor=floor
        )
    return HISTOGRAM.substitute(
        drawn="\n".join(drawn), line=line, highest=counts.max(), left=LEFT, right=WIDTH - RIGHT,
        middle=(LEFT + WIDTH - RIGHT) / 2, top=TOP, floor=floor, half=TOP + tall / 2, width=WIDTH,
        height=HEIGHT,
    )  # fmt: skip


def bars(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of equal bins, one edge being the threshold, and the counts.

    Numbers beyond what an axis can have are counted at its ends.
    """
    scores, threshold = scores.clip(-LARGEST, LARGEST), min(max(threshold, -LARGEST), LARGEST)
    wide = max(scores.max(), threshold) - min(scores.min(), threshold)
    step = (wide or abs(threshold) or 1.0) / np.clip(3 * len(scores) ** 0.5, 20, 60)
    step = max(step, np.spacing(abs(threshold)), FINEST)
    bins = np.floor((scores - threshold) / step).astype(int)
    bins = np.where(scores < threshold, np.minimum(bins, -1), np.maximum(bins, 0))  # < 0: anomalous
    first, last = min(bins.min(), -1), max(bins.max(), 0)
    edges = threshold + step * np.arange(first, last + 2)
    return edges, np.bincount(bins - first, minlength=last - first + 1)


def ticks(low: float, high: float) -> Iterator[float]:
    """Yield two to six round numbers from low to high."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(power * n for n in (1, 2, 5, 10) if (high - low) / (power * n) <= 5)
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield n * step
