"""Synthetic defects on normal images, with masks, for tests and for choosing parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from skimage.draw import bezier_curve
from skimage.transform import rotate

from skmkd._images.checks import image_list
from skmkd._images.pixel_range import PixelRange
from skmkd._runtime import draw_seed

SMALLEST = 16  # pixels, lower limit of both sides of an image
AREA = (0.005, 0.15)  # limits of a defect's share of the image
VISIBLE = 0.005  # share of the pixel range; changes of a lower local mean are undone
CONTRAST = 0.04  # minimum mean change of a defect, in the same unit
N_TRIES = 10

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def make_defects(
    X: np.ndarray | Sequence[ArrayLike],
    *,
    kind: str | Sequence[str] = "mixed",
    random_state: int | np.random.RandomState | None = None,
) -> tuple[Any, Any]:
    """Add one synthetic defect to each image.

    Where there are no real anomalies, synthetic defects serve to try a detector or to choose its
    parameters. They do not measure how well it will detect real defects.

    Parameters
    ----------
    X : ndarray of shape (n, H, W) or (n, H, W, C), or sequence of n array-likes
        Normal images, grey, RGB or RGBA, of at least 16 x 16 pixels: bool, integer or float. In
        a sequence they may differ in size. X is not modified.
    kind : str or sequence of str, default="mixed"
        "scratch", a thin curve, lighter or darker; "stain", a translucent blot; "blur", a blurred
        spot; "cut_paste", a rotated rectangle cut from elsewhere in the image; "missing", a shaded
        polygon of one tone; "perlin", grainy noise like rot or rust. If several are given, each
        image gets a random one of them; "mixed" means all.
    random_state : int, RandomState instance or None, default=None
        Seed of the defects. With None they differ from call to call. NumPy's global generator is
        not used.

    Returns
    -------
    X_bad : ndarray of the shape and dtype of X, or list of n ndarrays
        The images with defects, of the same dtypes and shapes.
    masks : ndarray of shape (n, H, W), bool, or list of n ndarrays of shape (H, W), bool
        True where pixels differ from those of X: 0.5 to 15 % of each image.

    Raises
    ------
    ValueError
        If X or `kind` is invalid, or pixels are not finite.

    Notes
    -----
    If a defect would be invisible, such as a blur on a plain image, a spot of the opposite
    brightness takes its place. Alpha is not changed.

    The gradient noise is that of [1]_; [2]_ uses cut-and-paste defects, [3]_ Perlin noise.

    References
    ----------
    .. [1] K. Perlin, "Improving Noise", SIGGRAPH 2002, doi:10.1145/566654.566636.
    .. [2] C.-L. Li, K. Sohn, J. Yoon and T. Pfister, "CutPaste: Self-Supervised Learning for
       Anomaly Detection and Localization", CVPR 2021, doi:10.1109/CVPR46437.2021.00954.
    .. [3] V. Zavrtanik, M. Kristan and D. Skočaj, "DRAEM: A Discriminatively Trained
       Reconstruction Embedding for Surface Anomaly Detection", ICCV 2021,
       doi:10.1109/ICCV48922.2021.00822.

    Examples
    --------
    >>> import numpy as np
    >>> from skimage.data import brick
    >>> from skmkd.datasets import make_defects
    >>> X = brick().reshape(4, 128, 512)
    >>> X_bad, masks = make_defects(X, kind="scratch", random_state=0)
    >>> X_bad.shape, X_bad.dtype, masks.shape, masks.dtype
    ((4, 128, 512), dtype('uint8'), (4, 128, 512), dtype('bool'))
    >>> np.array_equal(masks, X_bad != X)
    True
    """
    draws = _drawing(kind)
    images = image_list(X)
    for index, (height, width) in enumerate(images.sizes(range(len(images)))):
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"X must hold images of at least {SMALLEST} x {SMALLEST} pixels; got "
                f"{height} x {width} for X[{index}]."
            )
    assert images.pixel_range is not None
    generators = np.random.default_rng(draw_seed(random_state)).spawn(len(images))
    made = [
        _with_defect(image, images.pixel_range, draws[rng.integers(len(draws))], rng)
        for image, rng in zip(images, generators, strict=True)
    ]
    bad = [new.reshape(np.shape(old)) for old, (new, _) in zip(X, made, strict=True)]
    masks = [mask for _, mask in made]
    if isinstance(X, np.ndarray) and X.dtype != object:
        return np.stack(bad), np.stack(masks)
    return bad, masks


def _drawing(kind: str | Sequence[str]) -> list[Draw]:
    """Return the functions that draw the defects of these kinds."""
    names = [kind] if isinstance(kind, str) else list(kind)
    names = list(KINDS) if names == ["mixed"] else names
    if not names or not all(isinstance(name, str) and name in KINDS for name in names):
        raise ValueError(
            f"kind must be 'mixed', or one or several of {', '.join(map(repr, KINDS))}; "
            f"got {kind!r}."
        )
    return [KINDS[name] for name in names]


def _with_defect(
    image: np.ndarray, pixel_range: PixelRange, draw: Draw, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw until the defect is visible and within `AREA`: image (H, W, C), mask (H, W)."""
    low, scale = pixel_range.low, pixel_range.width
    n_colours = min(image.shape[2], 3)  # not alpha
    pixels = (image[..., :n_colours].astype(np.float64) - low) / scale
    for attempt in [draw] * N_TRIES + [_spot]:
        step = scale * (np.clip(attempt(pixels, rng), 0, 1) - pixels)  # 0 outside the defect
        new = image.copy()
        new[..., :n_colours] = _in_steps(image[..., :n_colours] + step, image.dtype)
        change = np.abs((new[..., :n_colours].astype(np.float64) - low) / scale - pixels).max(2)
        mask = (new != image).any(2) & (ndimage.uniform_filter(change, 5) >= VISIBLE)
        if AREA[0] <= mask.mean() <= AREA[1] and change[mask].mean() >= CONTRAST:
            break
    return np.where(mask[..., None], new, image), mask


def _in_steps(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round if the dtype is not a float."""
    return values if dtype.kind == "f" else np.rint(values)


# Each function draws on an image (H, W, C) of floats from 0 to 1 and returns a new one.


def _scratch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape = image.shape[:2]
    start, end = rng.uniform(0.05, 0.95, (2, 2))
    middle = (start + end) / 2 + rng.normal(0, 0.1, 2)  # slightly bent
    points = (np.clip([start, middle, end], 0, 1) * shape).astype(int)
    curve = np.zeros(shape, dtype=bool)
    (r0, c0), (r1, c1), (r2, c2) = points.tolist()
    curve[bezier_curve(r0, c0, r1, c1, r2, c2, weight=1, shape=shape)] = True
    distance = ndimage.distance_transform_edt(~curve)
    region = _lowest(distance, rng.uniform(0.006, 0.015))
    opacity = 1 - 0.5 * distance / (distance[region].max() + 1)  # highest along the curve
    return _blend(image, _other_tone(image, region, rng), region * opacity)


def _stain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    region = _blot(image.shape[:2], rng.uniform(0.02, 0.08), rng)
    opacity = 0.6 + 0.4 * _noise(image.shape[:2], 8, rng)
    return _blend(image, _other_tone(image, region, rng), region * opacity)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    region = _blot(image.shape[:2], rng.uniform(0.04, 0.12), rng)
    sigma = max(2.0, 0.03 * min(image.shape[:2]))
    return _blend(image, ndimage.gaussian_filter(image, (sigma, sigma, 0)), region)


def _cut_paste(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape = image.shape[:2]
    sides = np.tile([1, rng.uniform(0.3, 1)], 2)
    region = _polygon(shape, rng.uniform(0.03, 0.1), np.arange(4) * np.pi / 2, sides, rng)
    moved = np.roll(image, rng.integers(np.divide(shape, 4), np.multiply(shape, 0.75)), (0, 1))
    return _blend(image, rotate(moved, rng.uniform(0, 360), mode="symmetric"), region)


def _missing(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angles = np.arange(6) * np.pi / 3 + rng.uniform(-0.4, 0.4, 6)
    sides = rng.uniform(0.6, 1.2, 6)
    region = _polygon(image.shape[:2], rng.uniform(0.02, 0.08), angles, sides, rng)
    shade = 0.1 * _noise(image.shape[:2], 0.3 * min(image.shape[:2]), rng)
    return _blend(image, _other_tone(image, region, rng) + shade[..., None], region)


def _perlin(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shape = image.shape[:2]
    side = min(shape)
    far = _from_centre(shape, rng)
    height = _noise(shape, max(4, side / 5), rng) - 1.2 * np.hypot(*far) / side
    region = _lowest(-height, rng.uniform(0.03, 0.1))
    grain = 0.3 * _noise(shape, 3, rng)
    return _blend(image, _other_tone(image, region, rng) + grain[..., None], region * 0.85)


def _spot(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    region = _blot(image.shape[:2], rng.uniform(0.02, 0.08), rng)
    return np.where(region[..., None], np.where(image < 0.5, image + 0.6, image - 0.6), image)


KINDS: dict[str, Draw] = {
    "scratch": _scratch,
    "stain": _stain,
    "blur": _blur,
    "cut_paste": _cut_paste,
    "missing": _missing,
    "perlin": _perlin,
}


def _blend(image: np.ndarray, other: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Blend an image with another one, or a tone (C,), by opacity (H, W)."""
    return image + (other - image) * opacity[..., None]


def _other_tone(image: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a slightly tinted tone (C,), at least 0.35 lighter or darker than the region."""
    tone = (image[region].mean() + rng.uniform(0.35, 0.65)) % 1
    return tone + rng.normal(0, 0.04, image.shape[2])


def _lowest(values: np.ndarray, share: float) -> np.ndarray:
    """Return a mask of the lowest values, which are this share of all."""
    return values <= np.quantile(values, share)


def _from_centre(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the row (H, 1) and column (1, W) offsets of pixels from a random centre."""
    row, column = rng.uniform(0.1, 0.9, 2) * shape
    return np.arange(shape[0])[:, None] - row, np.arange(shape[1])[None] - column


def _polygon(
    shape: tuple[int, ...],
    share: float,
    angles: np.ndarray,
    sides: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a convex polygon (H, W), its sides at these angles and distances from its centre."""
    down, right = _from_centre(shape, rng)
    turn = rng.uniform(0, 2 * np.pi)
    along = [np.sin(angle + turn) * down + np.cos(angle + turn) * right for angle in angles]
    return _lowest(np.max([a / side for a, side in zip(along, sides, strict=True)], 0), share)


def _blot(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> np.ndarray:
    """Return a roughly circular region (H, W) with an irregular edge."""
    radius = np.sqrt(share * shape[0] * shape[1] / np.pi)
    distance = np.hypot(*_from_centre(shape, rng)) / radius
    return _lowest(distance + _noise(shape, max(3, radius), rng), share)


def _noise(shape: tuple[int, ...], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Return Perlin noise (H, W), from -1 to 1: two octaves, with cells of this size and half."""
    return _octave(shape, cell, rng) + _octave(shape, cell / 2, rng) / 2


def _octave(shape: tuple[int, ...], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Interpolate gradients of random direction between the corners of each cell."""
    y, x = (np.arange(side) / cell for side in shape)
    row, column = y.astype(int), x.astype(int)
    angle = rng.uniform(0, 2 * np.pi, (row[-1] + 2, column[-1] + 2))
    down, right = np.sin(angle), np.cos(angle)
    y, x = (y - row)[:, None], (x - column)[None]
    noise = np.zeros(shape)
    for i in (0, 1):
        for j in (0, 1):
            corner = np.ix_(row + i, column + j)
            slope = down[corner] * (y - i) + right[corner] * (x - j)
            noise += slope * _fade(np.abs(y - i)) * _fade(np.abs(x - j))
    return noise


def _fade(distance: np.ndarray) -> np.ndarray:
    """Return the smooth weight that falls from 1 at a corner to 0 at the next."""
    return 1 - distance**3 * (distance * (6 * distance - 15) + 10)
